"""Terraform's tests: with Terraform only, and what applies to a whole account only when asked for."""

from pathlib import Path

import pytest

from tests.infra.terraform import Terraform, need


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes minutes, unless ``-m infra_apply`` asks for it."""
    if "infra_apply" in config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker("infra_apply")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
def _terraform() -> None:
    """Whatever is here needs Terraform."""
    need("terraform")


@pytest.fixture(scope="session")
def terraform(tmp_path_factory: pytest.TempPathFactory) -> Terraform:
    """infra/terraform, initialised, for what needs no account."""
    need("terraform")
    copy = Terraform(tmp_path_factory.mktemp("infra"), AWS_REGION="eu-central-1")
    copy.init()
    return copy


@pytest.fixture(scope="session")
def complete(terraform: Terraform) -> dict[str, object]:
    """The whole, applied to the mocked provider: policies, user data and outputs as Terraform renders them."""
    return terraform.mocked_state(str(Path("tests") / "complete.tftest.hcl"))
