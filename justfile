# Thin verbs over the `whence` command.

pipeline := "pipelines/quickstart.toml"

# The quickstart study, from corpus to ranking.
demo: (run pipeline)

# Run a pipeline.
run file=pipeline *args:
    cargo run --release -p whence -- run {{file}} {{args}}

# What a run would do, and why.
plan file=pipeline *args:
    cargo run --release --quiet -p whence -- plan {{file}} {{args}}

# The page of a pipeline's step `report`, made if need be; prints its place.
report file=pipeline *args:
    cargo run --release -p whence -- run {{file}} {{args}}
    @echo "open $(cargo run --release --quiet -p whence -- path {{file}} report)/index.html"

# The curvature alone, to be reused by later studies.
curvature file=pipeline:
    cargo run --release -p whence -- run {{file}} --to lambda

# Up to the scores of every pair.
scores file=pipeline:
    cargo run --release -p whence -- run {{file}} --to scores

# The quickstart's model, trained anew from its corpus and put in place of the one in data/models.
checkpoint:
    cargo run --release -p whence -- run pipelines/train-quickstart.toml
    folder=$(cargo run --release --quiet -p whence -- path pipelines/train-quickstart.toml model) && cp "$folder"/*.json "$folder"/model.safetensors data/models/quickstart/ && rm data/models/quickstart/manifest.json

# Every test. Compiles the dependencies as `just demo` does: whoever ran one has them for the other.
test:
    cargo test --release --workspace

# The quickstart's report in headless Chromium: no error on its console, keys and clicks, numbers against the artifacts.
test-report:
    @command -v chromium chromium-browser google-chrome >/dev/null || { echo "test-report: needs Chromium (Debian, Ubuntu: apt install chromium)" >&2; exit 1; }
    @python3 -c "import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))" 2>/dev/null || { echo "test-report: needs Python 3.11 or newer as python3, with venv (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
    @test -x .venv/bin/pip || python3 -m venv --clear .venv
    .venv/bin/pip install --quiet --requirement tests/python/requirements.txt
    cargo run --release -p whence -- run {{pipeline}} --to report >/dev/null
    PIPELINE={{pipeline}} .venv/bin/python -m pytest tests/report

# What must be clean: format, clippy, links in the documentation.
lint:
    cargo fmt --all --check
    cargo clippy --release --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --no-deps

# Tokens a second of the floor of every scan: forward and activation-only backward.
bench *args:
    cargo bench --workspace --bench taps -- {{args}}

# Against a whole golden set converted by tests/fixtures/golden/make_fixtures.py --full FOLDER.
golden folder:
    WHENCE_GOLDEN={{folder}} cargo test --release --workspace --test golden -- --nocapture

# Artifacts and external stages from Python: FORMAT.md's one-liners and columns, and a stage that is a program.
test-python:
    @python3 -c "import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))" 2>/dev/null || { echo "test-python: needs Python 3.11 or newer as python3, with venv (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
    @test -x .venv/bin/pip || python3 -m venv --clear .venv
    .venv/bin/pip install --quiet --requirement tests/python/requirements.txt
    .venv/bin/python -m pytest tests/python
