"""Fisher information comes back from disk as it was written."""

from pathlib import Path

import pytest
import torch
from stored_formats import draw_fisher

from expunge.core.fisher import ForgetTerms
from expunge.formats.files import digest_file
from expunge.formats.fisher import (
    FISHER,
    load_fisher,
    load_forget_terms,
    save_fisher,
    save_forget_terms,
)


def test_equal_fishers_give_equal_bytes(tmp_path: Path) -> None:
    provenance = {"torch": "2", "device": "cpu", "dtype": "float32", "chunk": "1", "more": ""}
    digests = set()
    for attempt in range(6):
        how = dict(sorted(provenance.items(), reverse=bool(attempt % 2)))
        save_fisher(tmp_path / str(attempt), draw_fisher(0), how)
        digests.add(digest_file(tmp_path / str(attempt) / FISHER))
    assert len(digests) == 1


@pytest.mark.parametrize("provenance", [{"device": "NVIDIA H200", "chunk": "8"}, {}])
def test_fisher(tmp_path: Path, provenance: dict[str, str]) -> None:
    save_fisher(tmp_path / "fisher", draw_fisher(1), provenance)
    total, how = load_fisher(tmp_path / "fisher")
    assert how == provenance
    assert total.keys() == draw_fisher(1).keys()
    assert all(torch.equal(total[name], value) for name, value in draw_fisher(1).items())
    assert {value.dtype for value in total.values()} == {torch.float64}


def test_a_fisher_of_unknown_origin_has_no_provenance(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    for metadata in (None, {"device": "cpu"}):
        save_file(draw_fisher(1), tmp_path / FISHER, metadata=metadata)
        assert load_fisher(tmp_path)[1] == {}


@pytest.mark.parametrize(("direct", "lost"), [(True, 5), (False, 0)])
def test_forget_terms(tmp_path: Path, direct: bool, lost: int) -> None:
    terms = ForgetTerms(draw_fisher(1), draw_fisher(2), draw_fisher(3), direct=direct, lost=lost)
    save_forget_terms(tmp_path / "terms", terms)
    read = load_forget_terms(tmp_path / "terms", torch.device("cpu"))
    assert (read.direct, read.lost) == (direct, lost)
    for kind in ("forget", "retain", "gradient"):
        written = getattr(terms, kind)
        assert getattr(read, kind).keys() == written.keys()
        assert all(torch.equal(getattr(read, kind)[name], value) for name, value in written.items())
