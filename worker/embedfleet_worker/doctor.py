"""What `embedfleet doctor` asks of the worker's side: device, number format, memory. Prints one JSON document."""

import json
import os
from importlib.util import find_spec

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from embedfleet.errors import EmbedfleetError
from embedfleet.settings import FleetSettings, load
from embedfleet_worker import weights


def look(settings: FleetSettings) -> dict[str, object]:
    """What was found: ``ok``, ``detail``, ``remedy``."""
    if settings.engine == "synthetic":
        return {"ok": True, "detail": "not needed: the synthetic engine's vectors mean nothing"}
    if settings.engine == "openai":
        return _look_at_server(settings)
    if find_spec("vllm") is None:
        remedy = 'Where a worker runs: pip install "embedfleet[worker]" for NVIDIA cards; for CPUs see CONTRIBUTING.md.'
        return {"ok": False, "detail": "vLLM is not installed (a producer needs none)", "remedy": remedy}
    from embedfleet_worker.engine import vllm

    try:
        profile = settings.profile()
        device = vllm.device_name()
        dtype = vllm.choose_dtype(settings.dtype, profile, device)
        vllm.check_quantization(settings.quantization)
        max_tokens = min(profile.max_tokens, settings.max_tokens or profile.max_tokens)
        folder = weights.locate(profile.name, settings.revision, weights=False)  # not gigabytes, to look
        free = vllm.available_bytes(device)
        weights.check_fits(profile, folder, dtype, max_tokens, vllm.STEPS[device], free)
    except EmbedfleetError as exc:
        return {"ok": False, "detail": str(exc), "remedy": "Change the settings named there."}
    return {"ok": True, "detail": f"{device}, {dtype}, {free / 1024**3:.1f} GiB free: the model fits"}


def _look_at_server(settings: FleetSettings) -> dict[str, object]:
    """Connect as a worker does: its tokenizer, the server's model, a first vector."""
    try:
        weights.check_tokenizers()
        from embedfleet_worker.engine.openai import OpenaiEngine

        engine = OpenaiEngine(settings.profile(), settings)
    except EmbedfleetError as exc:
        return {"ok": False, "detail": str(exc), "remedy": "Start the server, or change the settings named there."}
    engine.close()
    return {"ok": True, "detail": f"not needed: {settings.openai_url} embeds ({engine.identity.engine_version})"}


if __name__ == "__main__":
    print(json.dumps(look(load())))  # noqa: T201 - the answer
