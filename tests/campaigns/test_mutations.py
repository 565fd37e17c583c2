"""The mutations' table fits the code; `python -m tests.campaigns.mutations` runs the tests on each."""

from dataclasses import replace

from tests.campaigns.mutations import MUTATIONS, applied, find_wrong, modules_with
from tests.support.jobs import ROOT


def test_every_mutation_finds_its_text_once_and_its_tests():
    assert find_wrong(ROOT, MUTATIONS) == []
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) >= 10


def test_a_text_that_is_gone_or_there_twice_is_named():
    absent, twice = replace(MUTATIONS[0], before="no such text"), replace(MUTATIONS[0], before="import torch\n")
    assert len(find_wrong(ROOT, [absent, twice])) == 2


def test_a_mutation_changes_one_module_of_the_copy_and_is_taken_back(tmp_path):
    module = tmp_path / "distmil/models/losses.py"
    module.parent.mkdir(parents=True)
    whole = f"a = {MUTATIONS[0].before}\n"
    module.write_text(whole)
    assert modules_with(tmp_path, MUTATIONS[0]) == [module]
    with applied(tmp_path, MUTATIONS[0]):
        assert module.read_text() == f"a = {MUTATIONS[0].after}\n"
    assert module.read_text() == whole
