"""Which names of other packages are answered, and by what of ours."""

from __future__ import annotations

_SCAN = "zoo.compat.selective_scan_interface"
_CONV = "zoo.compat.causal_conv1d_interface"
_KERNELS = "zoo.compat.kernels"
_MIXERS = "zoo.compat.mixers"
_BLOCKS = "zoo.compat.blocks"
_LM = "zoo.compat.mixer_seq_simple"
_MAMBA3 = "zoo.compat.mamba3"
_CHUNKS = "zoo.compat.ssd_chunks"
_FLA = "zoo.compat.fla"

#: Module of ours (after a colon, an object in it), and what of it: all public names if empty.
Source = tuple[str, tuple[str, ...]]

_SCAN_CUDA = ("fwd", "bwd")
_CONV_CUDA = ("causal_conv1d_fwd", "causal_conv1d_bwd", "causal_conv1d_update")

#: Module of theirs -> what it is made of.
MODULES: dict[str, tuple[Source, ...]] = {
    "mamba_ssm": (
        (_SCAN, ("selective_scan_fn", "mamba_inner_fn")),
        (_MIXERS, ("Mamba", "Mamba2")),
        (_MAMBA3, ("Mamba3",)),
        (_LM, ("MambaLMHeadModel",)),
    ),
    "mamba_ssm.models": (),
    "mamba_ssm.models.config_mamba": ((_LM, ("MambaConfig",)),),
    "mamba_ssm.models.mixer_seq_simple": (
        (_LM, ("MambaConfig", "MambaLMHeadModel", "MixerModel", "create_block")),
        (_MIXERS, ("Mamba", "Mamba2")),
        (_MAMBA3, ("Mamba3",)),
        (_BLOCKS, ("Block", "GatedMLP", "MHA")),
    ),
    "mamba_ssm.modules": (),
    "mamba_ssm.modules.block": ((_BLOCKS, ("Block",)),),
    "mamba_ssm.modules.mamba2": ((_MIXERS, ("Mamba2",)),),
    "mamba_ssm.modules.mamba2_simple": ((_MIXERS, ("Mamba2Simple",)),),
    "mamba_ssm.modules.mamba3": ((_MAMBA3, ("Mamba3",)),),
    # In mamba_ssm 1 the block stood here too, without an MLP.
    "mamba_ssm.modules.mamba_simple": (
        (_MIXERS, ("Mamba",)),
        (f"{_BLOCKS}:version_1", ("Block",)),
    ),
    "mamba_ssm.modules.mha": ((_BLOCKS, ("MHA",)),),
    "mamba_ssm.modules.mlp": ((_BLOCKS, ("GatedMLP",)),),
    "mamba_ssm.modules.ssd_minimal": ((_CHUNKS, ("segsum", "ssd_minimal_discrete")),),
    "mamba_ssm.ops": (),
    "mamba_ssm.ops.selective_scan_interface": ((_SCAN, ()),),
    "mamba_ssm.ops.triton": (),
    "mamba_ssm.ops.triton.k_activations": (("zoo.compat.layernorm_gated", ("swiglu",)),),
    "mamba_ssm.ops.triton.layer_norm": (("zoo.compat.layer_norm", ()),),
    "mamba_ssm.ops.triton.layernorm": (("zoo.compat.layer_norm", ()),),
    "mamba_ssm.ops.triton.layernorm_gated": (
        (
            "zoo.compat.layernorm_gated",
            ("LayerNorm", "RMSNorm", "layernorm_fn", "rmsnorm_fn", "rms_norm_ref"),
        ),
    ),
    "mamba_ssm.ops.triton.mamba3": (),
    "mamba_ssm.ops.triton.mamba3.mamba3_siso_combined": ((_MAMBA3, ("mamba3_siso_combined",)),),
    "mamba_ssm.ops.triton.mamba3.mamba3_siso_step": ((_MAMBA3, ("mamba3_siso_step",)),),
    "mamba_ssm.ops.triton.selective_state_update": (("zoo.compat.selective_state_update", ()),),
    "mamba_ssm.ops.triton.ssd_chunk_scan": ((_CHUNKS, ("chunk_scan", "chunk_scan_ref")),),
    "mamba_ssm.ops.triton.ssd_chunk_state": (
        (
            _CHUNKS,
            (
                "_chunk_cumsum_fwd",
                "_chunk_state_fwd",
                "chunk_state",
                "chunk_state_ref",
                "chunk_state_varlen",
            ),
        ),
    ),
    "mamba_ssm.ops.triton.ssd_combined": (("zoo.compat.ssd_combined", ()),),
    "mamba_ssm.ops.triton.ssd_state_passing": (
        (_CHUNKS, ("_state_passing_fwd", "state_passing", "state_passing_ref")),
    ),
    "mamba_ssm.utils": (),
    "mamba_ssm.utils.generation": (("zoo.compat.generation", ()),),
    "mamba_ssm.utils.hf": (("zoo.compat.hf", ()),),
    "causal_conv1d": ((_CONV, ("causal_conv1d_fn", "causal_conv1d_update")),),
    "causal_conv1d.causal_conv1d_interface": (
        (
            _CONV,
            (
                "causal_conv1d_fn",
                "causal_conv1d_ref",
                "causal_conv1d_update",
                "causal_conv1d_update_ref",
            ),
        ),
    ),
    "causal_conv1d.causal_conv1d_varlen": (
        (_CONV, ("causal_conv1d_varlen_states", "causal_conv1d_varlen_states_ref")),
    ),
    "causal_conv1d.cpp_functions": (
        (
            f"{_KERNELS}:causal_conv1d_functions",
            (
                "causal_conv1d_bwd_function",
                "causal_conv1d_fwd_function",
                "causal_conv1d_update_function",
            ),
        ),
    ),
    "selective_scan_cuda": ((f"{_KERNELS}:selective_scan_cuda", _SCAN_CUDA),),
    "selective_scan_cuda_core": ((f"{_KERNELS}:selective_scan_cuda_core", _SCAN_CUDA),),
    "selective_scan_cuda_oflex": ((f"{_KERNELS}:selective_scan_cuda_oflex", _SCAN_CUDA),),
    # EfficientVMamba's two builds of VMamba's kernel
    "selective_scan_vmamba": (),
    "selective_scan_vmamba.selective_scan_cuda_core": (
        (f"{_KERNELS}:selective_scan_cuda_core", _SCAN_CUDA),
    ),
    "selective_scan_vmamba_pt202": (),
    "selective_scan_vmamba_pt202.selective_scan_cuda_core": (
        (f"{_KERNELS}:selective_scan_cuda_core", _SCAN_CUDA),
    ),
    "causal_conv1d_cuda": ((f"{_KERNELS}:causal_conv1d_cuda", _CONV_CUDA),),
    "fla": (),
    "fla.modules": (("zoo.compat.layernorm_gated", ("FusedRMSNormGated",)),),
    "fla.ops": ((_FLA, ()),),
    "fla.ops.delta_rule": ((_FLA, ("chunk_delta_rule", "fused_recurrent_delta_rule")),),
    "fla.ops.gated_delta_rule": (
        (
            _FLA,
            (
                "chunk_gated_delta_rule",
                "chunk_gdn",
                "fused_recurrent_gated_delta_rule",
                "fused_recurrent_gdn",
            ),
        ),
    ),
    "fla.ops.linear_attn": (
        (_FLA, ("chunk_linear_attn", "fused_chunk_linear_attn", "fused_recurrent_linear_attn")),
    ),
    "fla.ops.simple_gla": (
        (_FLA, ("chunk_simple_gla", "fused_chunk_simple_gla", "fused_recurrent_simple_gla")),
    ),
}

#: The packages, and the versions whose interfaces these are.
PACKAGES = {
    "mamba_ssm": "2.3.2+zoo",
    "causal_conv1d": "1.7.0+zoo",
    "selective_scan_cuda": "2.3.2+zoo",
    "selective_scan_cuda_core": "0.0.2+zoo",
    "selective_scan_cuda_oflex": "0.0.2+zoo",
    "selective_scan_vmamba": "0.0.2+zoo",
    "selective_scan_vmamba_pt202": "0.0.2+zoo",
    "causal_conv1d_cuda": "1.7.0+zoo",
    "fla": "0.5.2+zoo",
}

#: What of them needs a GPU: kernels, what calls them, and a loop that measures by CUDA events.
#: The rest is PyTorch on top.
OPS = frozenset(
    name
    for name, sources in MODULES.items()
    if sources and (name.startswith(("mamba_ssm.ops.", "causal_conv1d.")) or "_cuda" in name)
) | {"mamba_ssm.utils.generation"}
