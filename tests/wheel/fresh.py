"""Installs the wheel of a folder into a fresh virtual environment, without Rust on the path, and runs the quickstart: from the
shell as README.md says, and from Python.

    python3 fresh.py DIST [--quick]      # `just test-wheel`; --quick runs the first steps only
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
TAG = r"-py3-none-(manylinux_\d+_\d+_\w+|manylinux2014_\w+|macosx_\d+_\d+_\w+|win_amd64|win_arm64)\S*\.whl$"
WINDOWS = os.name == "nt"


def main(dist, quick):
    [wheel] = Path(dist).glob("*.whl")
    assert re.search(TAG, wheel.name), f"{wheel.name} is for no index: not py3-none, or built against too new a C library"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {"wherefrom/__init__.py", "wherefrom/py.typed", "wherefrom/trainer.py"} <= set(names), names
    assert any(name.endswith(("/scripts/wherefrom", "/scripts/wherefrom.exe")) for name in names), names
    assert sum("licenses/LICENSE" in name for name in names) == 2, names

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        scripts = folder / "venv" / ("Scripts" if WINDOWS else "bin")
        path = os.pathsep.join([str(scripts), *([os.environ["SYSTEMROOT"] + "\\System32"] if WINDOWS else ["/usr/bin", "/bin"])])
        assert not any(shutil.which(name, path=path) for name in ("cargo", "rustc")), "Rust is on the path"
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("CARGO", "RUST", "PYTHON", "WHEREFROM"))}
        environment |= {"PATH": path, "WHEREFROM_STORE": str(folder / "store")}

        def run(*command):
            print("+", *command, flush=True)
            return subprocess.run(command, cwd=REPOSITORY, env=environment, check=True, stdout=subprocess.PIPE, text=True, encoding="utf-8").stdout

        python = scripts / ("python.exe" if WINDOWS else "python")
        run(python, "-m", "pip", "install", "--quiet", wheel.resolve())
        program = shutil.which("wherefrom", path=path)
        version = run(program, "--version")
        assert version.split()[1] == wheel.name.split("-")[1], version
        assert run(python, "-m", "wherefrom", "--version") == version
        said = run(program, "run", "pipelines/quickstart.toml", *(["--to", "covariances"] if quick else []))
        assert "covariances" in said
        code = """
import json, pathlib, sys, wherefrom as wf
assert pathlib.Path(sys.prefix) in wf.find_binary().parents and pathlib.Path(sys.prefix) in pathlib.Path(wf.__file__).parents
plan = wf.plan("pipelines/quickstart.toml")
cached = [name for name, step in plan.steps.items() if step.facts["state"] == "cached"]
made = wf.run("pipelines/quickstart.toml", to=cached[-1], quiet=True)
[row] = made["covariances"].rows(module="model.layers.0.mlp.down_proj", side="activation")
top = made.ranking(filters=[("query", "=", 7), ("rank", "=", 1)])["doc"].to_pylist() if "final" in cached else []
try:
    wf.run("nowhere.toml")
except ValueError as error:
    refused = str(error)
print(json.dumps({"cached": cached, "shape": row["matrix"].shape, "top": top, "refused": refused}))
"""
        found = json.loads(run(python, "-c", code))
        assert found["shape"] == [352, 352] and "nowhere.toml" in found["refused"], found
        assert quick or found["top"][0] == "factbook/kenya/capital", found
        print(f"{wheel.name} ({wheel.stat().st_size / 1e6:.1f} MB): {len(found['cached'])} steps made, and read from Python")


if __name__ == "__main__":
    main(sys.argv[1], "--quick" in sys.argv[2:])
