"""Answers of several choices at once: what goes wrong with one of them is told, and nobody waits for ever."""

import asyncio
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.contracts.generation import GenerationRequest
from app.contracts.recipe import ModelFiles
from app.core import config
from app.deployments import stream


def test_a_line_that_is_no_event_ends_the_request_also_of_several_choices(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "model.sock"
    monkeypatch.setenv("GPT_BUILDER_MODEL_SERVER_SOCKET", str(place))
    config.get_settings.cache_clear()
    request = GenerationRequest(model_ref="m", workspace_id="w", files=ModelFiles(base_dir="."), prompt="a")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nnonsense\n")
        await writer.drain()
        writer.close()

    async def run() -> None:
        async with await asyncio.start_unix_server(answer, place), asyncio.timeout(30):
            async for _ in stream.events_of([request, request]):
                pass

    with pytest.raises(ValidationError):
        asyncio.run(run())
