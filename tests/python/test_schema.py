"""`wherefrom schema`: every pipeline of the repository is valid, and a slip is not."""

import copy
import json
import re
import tomllib

import jsonschema
import pytest

from conftest import GOLDEN, PIPELINE, REPOSITORY

FILES = sorted([*REPOSITORY.glob("pipelines/*.toml"), *REPOSITORY.glob("examples/**/*.toml")])
PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("pipelines/*.md")])


@pytest.fixture(scope="module")
def validator(wherefrom):
    done = wherefrom("schema")
    assert done.returncode == 0, done.stderr
    schema = json.loads(done.stdout)
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


def blocks():
    """The pipelines in the documents, whole or in part: page and text."""
    for page in PAGES:
        for block in re.findall(r"^```toml\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
            if "[steps." in block:
                yield page.name, block


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_pipelines_are_valid(validator, path):
    validator.validate(tomllib.loads(path.read_text()))


def test_the_pipeline_of_these_tests_is_valid(validator):
    validator.validate(tomllib.loads(PIPELINE))


def test_what_init_writes_is_valid(validator, wherefrom, tmp_path):
    path = tmp_path / "study.toml"
    corpus = GOLDEN / "train.jsonl"
    query = "The capital of France is| Paris"
    done = wherefrom("init", "--model", GOLDEN / "model", "--corpus", corpus, "--query", query, "--output", path)
    assert done.returncode == 0, done.stderr
    validator.validate(tomllib.loads(path.read_text()))


def test_pipelines_in_the_documents_are_valid(validator):
    found = list(blocks())
    assert len(found) > 8
    for page, block in found:
        errors = [f"{list(error.path)}: {error.message}" for error in validator.iter_errors(tomllib.loads(block))]
        assert not errors, (page, block, errors)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (["steps", "train", "max-token"], 96, "'max-token' was unexpected"),
        (["steps", "train", "max-tokens"], "96", "'96' is not of type 'integer'"),
        (["steps", "train", "untargeted"], "drop", "'drop' is not valid"),
        (["steps", "train", "stage"], "tokenise", "'tokenise' is not one of"),
        (["steps", "train", "model"], 3, "3 is not of type 'string'"),
        (["steps", "train", "corpus"], None, "'corpus' is a required property"),
        (["steps", "train", "stage"], None, "'stage' is a required property"),
        (["steps", "basis", "modules"], "mlp", "'modules' was unexpected"),
        (["steps", "covariances", "modules-per-pass"], "all", "'all' is not of type 'integer'"),
        (["steps", "covariances", "inputs"], {"tokens": "train", "token": "train"}, "'token' was unexpected"),
        (["steps", "covariances", "inputs", "tokens"], None, "'tokens' is a required property"),
        (["steps", "scores", "inputs"], None, "'inputs' is a required property"),
        (["steps", "ihvp", "damping"], {"relativ": 0.1}, "is not valid under any of the given schemas"),
        (["steps", "ihvp", "rank"], "ful", "'ful' is not valid under any of the given schemas"),
        (["steps", "ihvp-external", "writes"], "numbers", "'numbers' is not one of"),
        (["steps", "ihvp-external", "version"], None, "'version' is a required property"),
        (["model", "precision"], "f64", "'f64' is not valid"),
        (["model", "module"], "mlp", "'module' was unexpected"),
        (["step"], {}, "'step' was unexpected"),
        (["about"], ["a study"], "is not of type 'string'"),
    ],
)
def test_a_slip_is_one_error_that_names_it(validator, place, value, said):
    pipeline = copy.deepcopy(tomllib.loads(PIPELINE))
    table = pipeline
    for key in place[:-1]:
        table = table[key]
    if value is None:
        del table[place[-1]]
    else:
        table[place[-1]] = value
    messages = [error.message for error in validator.iter_errors(pipeline)]
    assert len(messages) == 1 and said in messages[0], messages
