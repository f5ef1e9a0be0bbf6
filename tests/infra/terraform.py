"""Running Terraform on a copy of infra/terraform, with the provider from wherever it is to be had."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).parents[2] / "infra" / "terraform"
COMPLETE = "examples/complete"

# Folders that a machine without a way to the registry keeps providers in; below /opt Terraform itself does not look.
_MIRRORS = ("/opt/*", "/usr/local/share/terraform/*", "~/.terraform.d/*")
_PROVIDER = "*/hashicorp/aws/5.*"  # below the name of the registry it came from

PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # a wheel may have brought a command


def need(command: str) -> None:
    """Skip the test, by name, where a command is not installed; in CI, fail it."""
    if shutil.which(command, path=PATH):
        return
    message = f"{command} is not installed; see infra/terraform/README.md"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


class Terraform:
    """A copy of infra/terraform in a folder of the test's own, initialised; nothing is left in the working tree."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder / "terraform"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "TF_VAR_"))}
        self._environment = {**kept, "PATH": PATH, "CHECKPOINT_DISABLE": "1", **environment}
        ignored = shutil.ignore_patterns(".terraform*", "*.tfstate*", "*.tfvars")
        shutil.copytree(SOURCE, self.folder, ignore=ignored)

    def init(self, where: str = ".") -> None:
        """Install modules and the provider."""
        self.run("init", "-input=false", *_plugin_option(), where=where)

    def run(self, *arguments: str, where: str = ".") -> str:
        """A command's standard output. What Terraform complains about becomes the test's failure."""
        command = ["terraform", f"-chdir={self.folder / where}", arguments[0], "-no-color", *arguments[1:]]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.fail(f"terraform {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def outputs(self, where: str = ".") -> dict[str, Any]:
        """What was applied says of itself."""
        found = json.loads(self.run("output", "-json", where=where))
        return {name: output["value"] for name, output in found.items()}

    def mocked_state(self, file: str) -> dict[str, Any]:
        """Apply a test file's one run to the mocked provider: its outputs, and its resources by address."""
        lines = self.run("test", "-json", "-verbose", f"-filter={file}").splitlines()
        states = [line for line in lines if '"type":"test_state"' in line]
        state = json.loads(states[0])["test_state"]
        outputs = {name: output["value"] for name, output in state["outputs"].items()}
        return {"outputs": outputs, "resources": dict(_resources(state["root_module"]))}


def _resources(module: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for resource in module.get("resources", ()):
        yield resource["address"], resource["values"]
    for child in module.get("child_modules", ()):
        yield from _resources(child)


def _plugin_option() -> list[str]:
    """TF_CLI_ARGS_init says it all, else TF_PLUGIN_DIR, else a mirror that is there; with none, the registry."""
    if "TF_CLI_ARGS_init" in os.environ:
        return []
    if folder := os.environ.get("TF_PLUGIN_DIR"):
        return [f"-plugin-dir={folder}"]
    for mirror in _MIRRORS:
        pattern = Path(mirror).expanduser()
        for found in sorted(pattern.parent.glob(f"{pattern.name}/{_PROVIDER}")):
            return [f"-plugin-dir={found.parents[3]}"]
    return []
