"""A new user's path, timed, each step by a command that the step before printed; and pictures of what is seen on it.

    python .ci/screenshots.py                     a smoke run, its pages, one number changed, both runs compared
    python .ci/screenshots.py FOLDER --store DB   pictures alone, of a run that is there

It needs playwright (pip install playwright) and a Chromium, which it looks for on the PATH.
"""

import argparse
import html
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import rich
from mlflow.artifacts import download_artifacts
from playwright.sync_api import BrowserContext, Error, Page, sync_playwright
from rich.terminal_theme import MONOKAI

from draftopd import chat

EXPERIMENT = ("experiment=smoke", "+stages.draft_opd.grid={seed: [0, 1]}")  # two ways to go on
QUESTION = "What is 12 times 7?"
SIZE = {"width": 1500, "height": 900}
TERMINAL = """<!doctype html><meta charset="utf-8"><style>{stylesheet}
body {{ background: #14171c; color: #d8dce2; margin: 24px; font: 15px/1.5 monospace }}
pre {{ white-space: pre-wrap; margin: 0 }}
</style><pre><b>$ {{command}}</b>\n{code}</pre>"""
PATIENCE = 120_000  # milliseconds for a page: a busy machine serves some in minutes
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
QUIET = """
for (const [name, value] of [["panelOpen", "false"], ["fab.autoOpenedOnFirstLoad", "true"]])
    localStorage.setItem(`mlflow.assistant.${name}_v1`, value)
"""
"""MLflow's assistant would cover half of the first page"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="of a run with stages")
    parser.add_argument("--store", help="that has the run of this folder")
    parser.add_argument("--to", type=Path, default=Path("docs/pictures"))
    asked = parser.parse_args()
    to = asked.to.resolve()
    to.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as place:
        os.environ["MLFLOW_TRACKING_URI"] = asked.store or f"sqlite:///{place}/mlflow.db"
        os.environ["OMP_NUM_THREADS"] = "1"
        folder = asked.folder.resolve() if asked.folder else None
        os.chdir(place)
        said = (folder / "summary.md").read_text() if folder else run("python", "-m", "draftopd.fit", *EXPERIMENT)
        folder = folder or Path(found(r"this summary: (.*)/summary.md", said))
        picture_pages(said, folder, to)
        if not asked.folder:
            again, compared = (
                found(rf"(?m)^    (python -m draftopd.{name} .*)", said, last=True) for name in ("fit", "compare")
            )
            run(*shlex.split(again))
            print(run(*shlex.split(compared)))


def run(*words: str) -> str:
    """What a command prints."""
    print("$", shlex.join(words), flush=True)
    began = time.monotonic()
    done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True)
    print(f"  {time.monotonic() - began:.0f} s", flush=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return done.stdout


def found(pattern: str, text: str, last: bool = False) -> str:
    groups = re.findall(pattern, text)
    if not groups:
        sys.exit(f"nothing printed matches {pattern}:\n{text}")
    return str(groups[-1 if last else 0])


@contextmanager
def served(said: str) -> Iterator[dict[str, str]]:
    """The links that the command for MLflow's pages prints, while it serves them."""
    words = shlex.split(found(r"(python -m draftopd\.ui[^)\n]*)", said))
    print("$", shlex.join(words), flush=True)
    began = time.monotonic()
    command = [sys.executable, *words[1:], "--no-browser", "--port", "5055"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            links: dict[str, str] = {}
            assert server.stdout is not None
            while "curves" not in links:
                name, _, link = server.stdout.readline().strip().partition(": ")
                links[name] = link
            print(f"  {time.monotonic() - began:.0f} s", flush=True)
            yield links
        finally:
            server.terminate()


def picture_pages(said: str, folder: Path, to: Path) -> None:
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    with served(said) as links, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        context = chromium.new_context(viewport=SIZE)  # type: ignore[arg-type]
        context.add_init_script(QUIET)
        stage, stage_id = re.findall(r"[:,] (\S+) (\w{32})", said)[-1]
        page = re.sub(r"//[^/]+/", f"//{links['runs'].split('/')[2]}/", found(r"page: (\S+)", said))
        takes: dict[str, tuple[str, Callable[[Page], None]]] = {
            "runs": (links["runs"], lambda p: expand(p, stage)),
            "parent": (page, of_a_run),
            "mlflow": (links["curves"], drawn),
            "chat": (answer(folder / stage / "checkpoints" / "last.ckpt", Path("chat.html").resolve()), lambda p: None),
            "trace": (trace_of(stage_id), first_block),
        }
        for title, (address, ready) in takes.items():
            take(context, address, ready, to / f"{title}.png")
        chromium.close()


def take(context: BrowserContext, address: str, ready: Callable[[Page], None], to: Path) -> None:
    began = time.monotonic()
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    try:
        ready(page)
    except Error as error:
        print(f"{to.name} is not as it should be: {error}")
    page.wait_for_timeout(2000)  # what moves comes to rest
    height = page.evaluate("document.body.getBoundingClientRect().bottom") + 24
    page.screenshot(path=to, clip={"x": 0, "y": 0, **SIZE, "height": min(SIZE["height"], height)})  # type: ignore[arg-type]
    page.close()
    print(f"{to}: {to.stat().st_size / 1000:.0f} kB, {time.monotonic() - began:.0f} s", flush=True)


def expand(page: Page, stage: str) -> None:
    """The rows of a run's stages, in the table of runs."""
    parent = page.get_by_role("link", name=re.compile(r"^\S+ \w{4}$")).first
    parent.locator("xpath=preceding::*[name()='svg'][1]").click()  # the + before its name
    page.get_by_text(re.compile(rf"^{stage} \w+$")).first.wait_for()


def of_a_run(page: Page) -> None:
    """Down to its tags, which name this machine."""
    page.get_by_text("Child runs", exact=True).wait_for()
    page.evaluate("document.body.style.height = '565px'")


def drawn(page: Page) -> None:
    page.locator(".js-plotly-plot .main-svg").nth(3).wait_for(state="attached")
    page.wait_for_timeout(3000)


def trace_of(run_id: str) -> str:
    """Address of the page of traces that a stage has logged."""
    uri = os.environ["MLFLOW_TRACKING_URI"]
    return Path(download_artifacts(run_id=run_id, artifact_path="traces/examples.html", tracking_uri=uri)).as_uri()


def first_block(page: Page) -> None:
    """With its probabilities, which the slider shows."""
    page.locator("input[type=range]").first.fill("1")


def answer(checkpoint: Path, to: Path) -> str:
    """Address of a page with what `draftopd.chat` shows."""
    rich.reconfigure(record=True, width=88, force_terminal=True, color_system="truecolor", file=StringIO())
    sys.argv = ["draftopd.chat", f"checkpoint={checkpoint}", "decoding.max_new_tokens=160", "--prompt", QUESTION]
    console = rich.get_console()
    console.status = lambda *_: nullcontext()  # type: ignore[method-assign, assignment]  # what moves on a terminal
    chat.main()
    said = console.export_html(code_format=TERMINAL, theme=MONOKAI)
    to.write_text(
        said.replace("{command}", html.escape(f"python -m draftopd.chat checkpoint=last.ckpt --prompt '{QUESTION}'"))
    )
    return to.as_uri()


if __name__ == "__main__":
    main()
