import pytest

from zoo.checkpoints.claims import check_claim
from zoo.errors import ZooError


def test_claims_are_compared_with_the_file(tmp_path):
    path = tmp_path / "it"
    path.write_bytes(bytes(10_000))
    check_claim(path, 1032 * 10_000, "an array")  # as DEFLATE packs zeros
    with pytest.raises(ZooError, match="an array would take 10 MiB, but only 10,000"):
        check_claim(path, 1032 * 10_000 + 1, "an array")
    with pytest.raises(ZooError, match="only 100 bytes"):
        check_claim(path, 2**17, "an array", stored=100)
    check_claim(path, 2**16, "an array", stored=0)
    with pytest.raises(ZooError, match="only 10,000 bytes"):
        check_claim(path, 2**30, "an array", stored=2**40)
