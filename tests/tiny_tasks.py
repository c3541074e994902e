"""Every task once, tiny: a shipped recipe and what makes it run in seconds on data made here."""

from __future__ import annotations

from pathlib import Path

from tests.tiny import ROOT

_SHORT = "--trainer.max_epochs=1 --trainer.check_val_every_n_epoch=1 --trainer.accelerator=cpu"
_VIM = "{img_size: 16, patch_size: 4, stride: 4, depth: 2, embed_dim: 16, drop_path_rate: 0.0%s}"
_CHANGE = (
    "--model.init_args.model_args={dims: [8, 8, 8, 8], depths: [1, 1, 1, 1], decoder_width: 8, "
    "norm_layer: bn, drop_path_rate: 0.0}",
    "--data.init_args.sample={train: 8, val: 0, test: 6, size: 32}",
    "--data.init_args.crop=32",
    "--data.init_args.batch_size=4",
)
_LLAMA = (
    "{vocab_size: 35, num_hidden_layers: %d, hidden_size: 32, intermediate_size: 32, "
    "num_attention_heads: 2, num_key_value_heads: 2, max_position_embeddings: 128}"
)
_UNITS = (
    f"--model.init_args.target_args={_LLAMA % 2}",
    "--data.init_args.samples=64",
    "--data.init_args.length=32",
    "--data.init_args.batch_size=4",
    "--trainer.limit_train_batches=4",
    "--model.init_args.decoding_test.prompts=2",
    "--model.init_args.decoding_test.new_tokens=8",
)
_SMALL_DRAFT = f"--model.init_args.draft_args={_LLAMA % 1}"
_CHAT = (
    "--data.init_args.sample={train: 8, val: 2, test: 2, size: 16}",
    "--data.init_args.batch_size=4",
)

#: Name of a task -> its recipe below recipes/, and overrides.
TINY: dict[str, tuple[str, tuple[str, ...]]] = {
    "ImageClassification": (
        "vision/vmamba/small",
        (
            "--model.init_args.model_args={depths: [1, 1], dims: 8, drop_path_rate: 0.0}",
            "--data.init_args.image_size=16",
            "--data.init_args.batch_size=256",
            "--data.init_args.eval_batch_size=135",
        ),
    ),
    "PrunedClassification": (
        "vision/token_pruning/small",
        (
            f"--model.init_args.model_args={_VIM % ', prune_after: [1], keep_ratio: 0.7'}",
            "--data.init_args.image_size=16",
            "--data.init_args.batch_size=256",
            "--data.init_args.eval_batch_size=135",
        ),
    ),
    "MedicalClassification": (
        "dense/medusa_medical/small",
        (
            "--data.init_args.sample={train: 20, val: 4, test: 6, size: 32}",
            "--data.init_args.image_size=32",
            "--data.init_args.batch_size=4",
            "--model.init_args.model_args.body_size=16",
            "--model.init_args.body_epochs=1",
            "--trainer.max_epochs=2",
        ),
    ),
    "Detection": (
        "vision/mask_rcnn/small",
        (
            "--data.init_args.sample={train: 8, val: 0, test: 6, size: 64}",
            "--data.init_args.batch_size=4",
            "--model.init_args.model_args.backbone_args={dims: 8, depths: [1, 1, 1, 1], "
            "drop_path_rate: 0.0}",
            "--model.init_args.model_args.channels=16",
            "--model.init_args.model_args.head_channels=16",
            "--model.init_args.model_args.proposals=20",
            "--model.init_args.model_args.regions=8",
            "--model.init_args.model_args.detections=5",
        ),
    ),
    "Segmentation": (
        "dense/wau/small",
        (
            # a tenth of the volumes, of eight slices each, is for validation
            "--data.init_args.sample={train: 152, val: 8, test: 16, size: 32}",
            "--data.init_args.image_size=32",
            "--data.init_args.batch_size=4",
            "--trainer.limit_train_batches=2",
            "--model.init_args.model_args.widths=[8, 16, 16]",
            "--model.init_args.model_args.head_dim=8",
        ),
    ),
    "Segmentation in stages": (
        "dense/sinet/small",
        (
            "--data.init_args.sample={train: 8, val: 4, test: 6, size: 32}",
            "--data.init_args.image_size=32",
            "--data.init_args.batch_size=4",
            "--model.init_args.encoder_epochs=1",
            "--trainer.max_epochs=2",
        ),
    ),
    "CrowdCounting": (
        "dense/sfanet/small",
        (
            "--data.init_args.sample={train: 80, val: 0, test: 6, size: 64}",
            "--data.init_args.crop=64",
            "--data.init_args.batch_size=4",
            "--model.init_args.model_args.width=4",
        ),
    ),
    "Inpainting": (
        "dense/mutual_inpainting/small",
        (
            "--data.init_args.sample={train: 8, val: 4, test: 6, size: 64}",
            "--data.init_args.batch_size=4",
            "--model.init_args.model_args={ngf: 4, reduction: 16}",
        ),
    ),
    "SuperResolution": (
        "dense/yonos_sr/small",
        (
            "--data.init_args.sample={train: 8, val: 4, test: 6, size: 32}",
            "--data.init_args.batch_size=4",
            "--model.init_args.stages=[{train: autoencoder, epochs: 1}, {train: unet, scale: 2, "
            "epochs: 1}, {train: unet, scale: 4, distil: true, epochs: 1}, {train: decoder, "
            "scale: 4, epochs: 1}]",
            "--trainer.max_epochs=4",
        ),
    ),
    "VideoDepth": (
        "dense/prelude_net/small",
        (
            "--data.init_args.sample={train: 2, val: 2, test: 3, size: 16}",
            "--data.init_args.length=4",
            "--data.init_args.hop=28",
            "--data.init_args.batch_size=4",
        ),
    ),
    "MultiTask": (
        "dense/taskexpert/small",
        (
            "--data.init_args.sample={train: 8, val: 4, test: 6, size: 32}",
            "--data.init_args.size=[32, 32]",
            "--model.init_args.model_args.img_size=[32, 32]",
            "--data.init_args.batch_size=4",
        ),
    ),
    "BinaryChangeDetection": ("change/changemamba/small", _CHANGE),
    "SemanticChangeDetection": ("change/changemamba/small_scd", _CHANGE),
    "DamageAssessment": ("change/changemamba/small_bda", _CHANGE),
    "LanguageModeling": (
        "decoding/token_recycling/small",
        (
            f"--model.init_args.model_args={_LLAMA % 1}",
            "--model.init_args.model_args.vocab_size=300",
            "--data.init_args.vocab_size=300",
            "--data.init_args.max_bytes=400000",
            "--data.init_args.length=64",
            "--data.init_args.batch_size=16",
            "--trainer.limit_train_batches=6",
            "--trainer.limit_val_batches=2",
            "--trainer.limit_test_batches=2",
            "--model.init_args.decoding_test.prompts=2",
            "--model.init_args.decoding_test.new_tokens=8",
        ),
    ),
    "TextClassification": (
        "language/sinkd/small_teacher",
        (
            "--data.init_args.sample={train: 24, val: 6, test: 0}",
            "--data.init_args.batch_size=4",
            "--model.init_args.model_args.num_hidden_layers=1",
            "--model.init_args.model_args.hidden_size=16",
        ),
    ),
    "TokenClassification": (
        "language/token_classification/small",
        (
            "--data.init_args.sample={train: 40, val: 6, test: 6}",
            "--data.init_args.batch_size=4",
            "--model.init_args.model_args.num_hidden_layers=1",
            "--model.init_args.model_args.hidden_size=16",
        ),
    ),
    "TokenHeadTraining": ("decoding/hydra/small", _UNITS),
    "AttributeTraining": (
        "decoding/conditional_beam/small",
        (
            "--data.init_args.samples=64",
            "--data.init_args.batch_size=4",
            "--trainer.limit_train_batches=4",
            "--model.init_args.decoding_test.prompts=2",
            "--model.init_args.decoding_test.options={width: 2}",
        ),
    ),
    "AdapterTraining": ("decoding/kangaroo/small", _UNITS),
    "PromptTokenTraining": ("decoding/ppd/small", _UNITS),
    "HiddenTransferTraining": (
        "decoding/hidden_transfer/small",
        (*_UNITS, "--model.init_args.head_args={layers: [1, 1, 2]}"),
    ),
    "LexicalUnitTraining": (
        "decoding/lud/small",
        (f"--model.init_args.model_args={_LLAMA % 2}", *_UNITS[1:]),
    ),
    "AcceptanceTraining": ("decoding/specdec_pp/small", (*_UNITS, _SMALL_DRAFT)),
    "DraftModelTraining": ("decoding/spectr/small", (*_UNITS, _SMALL_DRAFT)),
    "VisualQuestionAnswering": (
        "multimodal/mmmamba/small",
        (
            *_CHAT,
            "--model.init_args.model_args.hidden_size=32",
            "--model.init_args.model_args.intermediate_size=32",
        ),
    ),
    "AttentionDistillation": (
        "recurrent/hedgehog/small",
        (
            "--model.init_args.teacher=token_recycling_small",
            "--data.init_args.vocab_size=300",
            "--data.init_args.max_bytes=400000",
            "--data.init_args.length=16",
            "--trainer.limit_train_batches=4",
            "--trainer.limit_val_batches=2",
            "--trainer.limit_test_batches=2",
        ),
    ),
    # its teacher is what the one above exports
    "Distillation": (
        "multimodal/mmmamba/small_stage3_linear",
        (
            *_CHAT,
            "--model.init_args.start=null",
            "--model.init_args.length_test={lengths: [8, 16], steps: 2}",
            "--trainer.max_steps=-1",
            "--trainer.val_check_interval=null",
        ),
    ),
    "SequenceClassification": (
        "ssm/lmuformer/small",
        (
            "--data.init_args.sample={train: 8, val: 4, test: 6}",
            "--data.init_args.batch_size=4",
            "--model.init_args.model_args={in_channels: 24, embed_dims: 8, num_heads: 2}",
        ),
    ),
    "AudioModeling": (
        "ssm/sashimi/small",
        (
            "--data.init_args.sample={train: 44, val: 3, test: 3, size: 512}",
            "--data.init_args.length=512",
            "--data.init_args.batch_size=4",
            "--trainer.limit_train_batches=2",
            "--model.init_args.model_args={d_model: 4, n_layers: 1, d_state: 4, pool: [4]}",
            "--model.init_args.generate_seconds=0.005",
        ),
    ),
    "SpeechRecognition": (
        "speech/samba_asr/small",
        (
            "--data.init_args.sample={train: 8, val: 4, test: 4}",
            "--data.init_args.batch_size=4",
            "--model.init_args.model_args={d_model: 32, encoder_layers: 1, decoder_layers: 1, "
            "n_mels: 40, dropout: 0.0}",
            "--model.init_args.search={beams: 2, max_tokens: 8}",
        ),
    ),
    "SeriesForecasting": (
        "vision/mambamixer/small_tsm2",
        (
            "--data.init_args.sample={hours: 600}",
            "--model.init_args.model_args={variates: 7, seq_len: 96, pred_len: 16, d_model: 8, "
            "d_state: 2}",
            "--data.init_args.batch_size=128",
        ),
    ),
    "Tracking": (
        "tracking/trackssm/small",
        (
            "--data.init_args.sample={train: 2, val: 2, test: 2, frames: 16, objects: 3, "
            "motions: [circle, sway]}",
            "--data.init_args.batch_size=64",
            "--model.init_args.model_args={encoder: {d_model: 16, n_layer: 1}, "
            "decoder: {d_model: 16}}",
        ),
    ),
}


def tiny_task(name: str) -> tuple[Path, list[str]]:
    """The recipe and the overrides of a task's tiny run."""
    recipe, overrides = TINY[name]
    return ROOT / "recipes" / f"{recipe}.yaml", [*_SHORT.split(), *overrides]
