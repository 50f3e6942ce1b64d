"""Do servers write what the target writes? Two vLLM servers, of which one is killed half-way and started again.

    python -m benchmarks.serve_texts --prompts questions.jsonl --limit 200

`texts=engine` writes greedy texts of SmolLM2-135M-Instruct in float32 through both, with vLLM in an environment of its
own (`.venv-vllm`, made on first use). When a third is there, the second server is killed with all its processes and
started again. It passes where every text is the target's own: differences at ties, top two logits closer than 1e-4 in
float64, are listed and count as none.

Then drafters are trained on such texts (`benchmarks/serve_training.py`): by SFT, beside the same on local texts, and by
an on-policy phase that redrafts along them, beside local rollouts. The last line printed is one JSON object; the exit
code is 1 where it did not pass.
"""

import argparse
import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.lossless import compare, questions
from benchmarks.serve_training import compared
from benchmarks.serve_training import passed as trained_alike
from benchmarks.vllm_environment import SETTINGS, ensure

from draftopd.command import one_line_errors
from draftopd.console import terminable
from draftopd.data.engine import WRITTEN_BY, Engine
from draftopd.data.sources import encode
from draftopd.data.texts import TextCache, Texts
from draftopd.decoding.settings import Decoding
from draftopd.publishing.asking import Process, free_port, running
from draftopd.target.load import smollm2
from draftopd.target.model import Target
from draftopd.tracking.header import git_commit

LOOK = 0.2  # seconds


class Server(Process):
    """A vLLM server and all its processes."""

    def __init__(self, python: Path, target: Target, length: int, log: Path) -> None:
        self.port = free_port()
        where = ["--host", "127.0.0.1", "--port", str(self.port)]
        what = ["--model", target.model.config.name_or_path, "--served-model-name", "target", "--dtype", "float32"]
        size = ["--enforce-eager", "--max-model-len", str(length), "--max-num-seqs", "4"]
        # without the setting for one process: a server always has two
        settings = {name: value for name, value in SETTINGS.items() if "MULTIPROCESSING" not in name}
        super().__init__([str(python), "-m", "vllm.entrypoints.openai.api_server", *what, *size, *where], log, settings)


@contextmanager
def all_running(servers: Sequence[Server]) -> Iterator[None]:
    with ExitStack() as stack:
        for server in servers:
            stack.enter_context(running(server))
        yield


def stored(texts: Texts) -> int:
    """Texts that are there so far."""
    return sum(path.read_bytes().count(b"\n") for path in texts.folder.glob("*.jsonl"))


@contextmanager
def killing(server: Server, texts: Texts, count: int) -> Iterator[list[int]]:
    """Kills the server once `count` texts are there, and starts it again; the list says how many there were."""
    over, kills = threading.Event(), list[int]()

    def watch() -> None:
        while not over.wait(LOOK):
            if (done := stored(texts)) >= count:
                server.kill()
                kills.append(done)
                return server.start()

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield kills
    finally:
        over.set()
        watching.join()


def measured(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    target = smollm2(args.cache_dir)
    encoded = [encode(prompt, target.tokenizer) for prompt in questions(args.prompts, args.limit)]
    prompts = [ids for ids in encoded if ids is not None]
    decoding, length = Decoding(args.tokens, batch_size=16), max(map(len, prompts)) + args.tokens
    servers = [Server(ensure(args.environment), target, length, args.log) for _ in range(2)]
    urls = [f"http://127.0.0.1:{server.port}" for server in servers]
    writer = Engine(urls=urls, concurrency=4, patience=args.patience)
    size, target_texts = len(prompts), (target, prompts, decoding, ())
    texts = TextCache(str(scratch / "served"), None, shard_size=size, writer=writer).open(*target_texts)
    with all_running(servers), killing(servers[1], texts, size // 3) as kills:
        start = time.perf_counter()
        texts.write(size)
        seconds = time.perf_counter() - start
    local = TextCache(str(scratch / "local"), None, shard_size=size).open(*target_texts)
    plain = [local[i].tokens for i in range(size)]
    found = compare([texts[i].tokens for i in range(size)], plain, prompts, args.tokens, target)
    training = compared(args, size, scratch) if args.train else None
    server = json.loads((texts.folder / WRITTEN_BY).read_text())
    passed = not found["wrong"] and (training is None or trained_alike(training))
    report = {"server": server, "killed_after": kills, "seconds": seconds, "passed": passed, **found}
    return report | {"training": training, "commit": git_commit()}


def main(words: Sequence[str] | None = None) -> int:
    args = arguments(words)
    with one_line_errors(), terminable(), TemporaryDirectory(prefix="serve-texts-") as scratch:
        report = measured(args, Path(scratch))
        print(json.dumps(report))
        return 0 if report["passed"] else 1


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=Path, required=True, help="a JSON Lines file")
    parser.add_argument("--limit", type=int, default=200, help="prompts, at most")
    parser.add_argument("--tokens", type=int, default=48, help="max_new_tokens")
    parser.add_argument("--train", type=int, default=100, help="prompts that are trained on too; 0: none")
    parser.add_argument("--patience", type=float, default=1800.0, help="seconds until a server must answer")
    parser.add_argument("--environment", type=Path, default=Path(".venv-vllm"), help="of vLLM; made if it is not there")
    parser.add_argument("--log", type=Path, default=Path("serve-texts.log").absolute(), help="what the servers print")
    parser.add_argument("--cache-dir", default="~/.cache/draftopd", help="where the target lies")
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main())
