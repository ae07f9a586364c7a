"""The page: what is on it, and what happens when something is pressed."""

import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.blocks import Block
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scripts.webapp.faults import FAULTS, Answers, words
from scripts.webapp.job import ROOT, Job
from scripts.webapp.models import model_words, models_there, side_of
from scripts.webapp.photos import keep, keep_kernel, mask_of, shown
from util.errors import UserError

# Of those in configs/presets, the ones for any task; the first is proposed.
PRESETS = ("fastest", "light", "fast", "best", "paper", "reference")
SECONDS = 0.5  # between two looks at what the command has done

# Nothing on the page may be fetched from elsewhere.
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"
FONTS = ("system-ui", "sans-serif")
BUTTONS: list[Any] = ["download", "fullscreen"]  # of pictures; another would upload them

View = tuple[Any, ...]


class Page:
    """The page, and the restorations that run for its tabs: one at a time, the others wait.

    Args:
        results: the folder in which each restoration has one of its own.

    Attributes:
        blocks: for Gradio.
    """

    def __init__(self, results: Path) -> None:
        self._results = results.resolve()
        self._jobs: dict[str, Job] = {}
        with gr.Blocks(title="Restore a photo", analytics_enabled=False, delete_cache=(3600, 86400)) as self.blocks:
            gr.Markdown("# Restore a photo\nIt stays on this machine.")
            with gr.Row():
                with gr.Column():
                    self._ask()
                with gr.Column():
                    outputs = self._answer()
            inputs: set[Block] = {self.photo, self.painted, self.fault, self.model, self.preset, self.seed, self.is_cut}
            inputs |= {self.noise, self.blur, self.kernel, self.factor, self.quality}
            running = self.start.click(self._run, inputs, outputs, concurrency_limit=1)
            self.cancel.click(self._stop, None, outputs[0], cancels=[running], queue=False)
            self.blocks.unload(self._leave)

    def _ask(self) -> None:
        """Put on the page what a person gives."""
        self.photo = gr.File(label="A photo", type="filepath", elem_id="photo")
        brush = gr.Brush(default_size=12, colors=["#ff00ff"], default_color="#ff00ff", color_mode="fixed")
        self.painted = gr.ImageEditor(
            label="Paint over a hole",
            type="pil",
            format="png",
            sources=(),
            transforms=(),
            layers=False,
            brush=brush,
            buttons=[],
            elem_id="painted",
        )
        self.fault = gr.Radio(list(FAULTS), value="a hole", label="What is wrong with it", elem_id="fault")
        self.noise = gr.Slider(0, 50, 2, step=0.5, label="Noise, in levels of 255")
        self.blur = gr.Slider(0.5, 10, 2, step=0.5, label="Blur, in pixels", visible=False)
        self.kernel = gr.File(label="... or a file with its kernel", type="filepath", visible=False, elem_id="kernel")
        self.factor = gr.Slider(2, 8, 4, step=1, label="Enlarge so many times", visible=False)
        self.quality = gr.Slider(5, 95, 20, step=1, label="Quality of the JPEG file", visible=False)
        models = models_there()
        self.model = gr.Dropdown(models, value=models[0], label="Model")
        with gr.Row():
            self.preset = gr.Dropdown(list(PRESETS), value=PRESETS[0], label="Preset")
            self.seed = gr.Number(0, label="Seed", precision=0, minimum=0)
        self.is_cut = gr.Checkbox(True, label="Cut the photo to its middle and scale it to the model's size")
        with gr.Row():
            self.start = gr.Button("Restore", variant="primary", elem_id="start")
            self.cancel = gr.Button("Cancel", elem_id="cancel")
        self.photo.change(_shown, self.photo, self.painted)
        self.fault.change(_asked, self.fault, [self.blur, self.kernel, self.factor, self.quality])

    def _answer(self) -> list[Any]:
        """Put on the page what a person gets, in the order in which `_follow` gives it."""
        return [
            gr.Textbox(label="Status", interactive=False, elem_id="status"),
            gr.Image(label="The estimate", type="filepath", interactive=False, buttons=BUTTONS, elem_id="estimate"),
            gr.ImageSlider(label="Before and after", interactive=False, buttons=BUTTONS, elem_id="pair"),
            gr.File(label="The picture", interactive=False, elem_id="result"),
            gr.Code(
                label="The command that repeats this", language="shell", wrap_lines=True, lines=3, elem_id="command"
            ),
        ]

    def _run(self, values: Mapping[Any, Any], request: gr.Request) -> Iterator[View]:
        """Restore a photo, by the values of what is on the page."""
        self._results.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), dir=self._results))
        try:
            photo, told = self._told(values, folder)
        except UserError as error:
            shutil.rmtree(folder)
            raise gr.Error(str(error), print_exception=False) from error
        yield from self._follow(Job(told, folder / "run"), photo, request.session_hash or "")

    def _told(self, values: Mapping[Any, Any], folder: Path) -> tuple[Path, list[str]]:
        """Write the photo into a folder, and return it and the command's words.

        Raises:
            UserError: there is none, or what is needed besides is missing.
        """
        fault, model, factor = values[self.fault], values[self.model], int(values[self.factor])
        if values[self.photo] is None:
            raise UserError("drop a photo first")
        side = side_of(model) if values[self.is_cut] else None
        photo = keep(values[self.photo], folder, side // factor if side and fault == "small" else side)
        mask = mask_of(values[self.painted], photo, side is not None)
        if fault == "a hole":
            if mask is None:
                raise UserError("paint over the hole first")
            mask.save(folder / "mask.png")
        own = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder
        kernel = None
        if fault == "blurred" and values[self.kernel] is not None:
            kernel = own / keep_kernel(values[self.kernel], folder, values[self.photo], side)
        answers = Answers(
            own / "mask.png", values[self.noise], values[self.blur], kernel, factor, int(values[self.quality] or 0)
        )
        return photo, [
            *words(fault, answers),
            *model_words(model),
            *("--preset", values[self.preset], "--seed", str(int(values[self.seed] or 0))),
            *("--measurement", str(own / photo.name), "--resize", "pad", "--save_dir", str(own / "run")),
        ]

    def _follow(self, job: Job, photo: Path, session: str) -> Iterator[View]:
        """Yield status, estimate, what to compare, the picture's file and the command, until it has ended."""
        self._jobs[session] = job
        try:
            while job.is_running():
                estimate = job.estimate()
                yield job.progress(), estimate and str(estimate), None, None, job.command()
                job.wait(SECONDS)
        finally:
            job.stop()
            self._jobs.pop(session, None)
        result = job.result()
        if result is None:
            yield job.outcome(), None, None, None, job.command()
            return
        after = shown(result)
        yield job.outcome(), str(result), (shown(photo).resize(after.size), after), str(result), job.command()

    def _stop(self, request: gr.Request) -> str:
        """Stop what runs for a tab."""
        job = self._jobs.get(request.session_hash or "")
        if job is not None:
            job.stop()
        return "stopped"

    def _leave(self, request: gr.Request) -> None:
        """Stop what runs for a tab that is closed."""
        self._stop(request)


def _shown(photo: str | None) -> Any:
    """Return what is painted on."""
    try:
        return None if photo is None else shown(photo)
    except UserError as error:
        raise gr.Error(str(error), print_exception=False) from error


def _asked(fault: str) -> list[Any]:
    """Show what there is to say of a fault."""
    return [gr.update(visible=fault == of) for of in ("blurred", "blurred", "small", "JPEG")]


class OnlyFromHere:
    """Tells the browser with every answer that the page may ask this address only."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request (ASGI)."""

        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self._app(scope, receive, with_policy)


def serve(port: int, results: Path, open_browser: bool) -> None:
    """Show the page at 127.0.0.1, until Ctrl-C.

    Raises:
        OSError: the port is taken.
    """
    Page(results).blocks.queue(default_concurrency_limit=1).launch(
        server_name="127.0.0.1",
        server_port=port,
        share=False,
        inbrowser=open_browser,
        quiet=True,
        ssr_mode=False,
        footer_links=[],
        theme=gr.themes.Default(font=FONTS, font_mono=("monospace",)),
        allowed_paths=[str(results.resolve())],
        app_kwargs={"middleware": [Middleware(OnlyFromHere)]},
    )
