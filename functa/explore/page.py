"""The page: five panels on a Session, built with Gradio."""

import functools
from collections.abc import Callable
from typing import Any

import gradio as gr
import numpy as np

from functa.explore.session import Example, Sampling, Session
from functa.runtime.image_io import enlarge, to_uint8

CSS = """
img { image-rendering: pixelated; }
.image-frame img { width: 100%; height: 100%; object-fit: contain !important; }
.grid-wrap { max-height: none !important; }
.grid-container { grid-template-columns: repeat(auto-fill, minmax(95px, 1fr)) !important; }
.gallery-item .thumbnail-item { aspect-ratio: auto; display: block; height: 100%; }
.gallery-item .thumbnail-item img { height: auto; }
.gallery-item .caption-label { position: static; max-width: none; border: 0; font-size: 11px;
  text-align: center; white-space: normal; }
#selection { align-items: center; }
"""
_CANVAS_SIDE = 320  # pixels of the enlarged image to paint on
_HIDDEN_COLOR = (217, 112, 43)
_random = np.random.default_rng()


def make_page(session: Session) -> gr.Blocks:
    """Builds the page."""
    shapes = session.field.image_shape, session.field.latent_shape
    image, latents = ("×".join(map(str, shape)) for shape in shapes)
    with gr.Blocks(title=f"{session.config.name}: explore", analytics_enabled=False) as page:
        gr.Markdown(
            f"# {session.config.name}\n{sum(session.splits.values()):,} functa of {image} images, "
            f"latents {latents} {session.manifest.dtype}"
        )
        panels = _Panels(session)
        for name in ("Browse", "Decode", "Generate", "Interpolate", "Inpaint"):
            with gr.Tab(name) as tab:
                getattr(panels, name.lower())(tab)
    return page


def to_picture(image: np.ndarray) -> np.ndarray:
    """[h, w, 1 or 3] uint8, or float in [0, 1] -> [h, w, 3] uint8."""
    return np.broadcast_to(to_uint8(image), (*image.shape[:2], 3))


def hidden_pixels(drawing: dict[str, Any], shape: tuple[int, int]) -> np.ndarray:
    """Pixels [h, w] bool that are painted over by half or more in a value of the ImageEditor."""
    h, w = shape
    painted = np.zeros(shape)
    for layer in drawing["layers"]:
        alpha = layer[..., 3] / 255
        painted += alpha.reshape(h, len(alpha) // h, w, -1).mean((1, 3))
    return painted >= 0.5


def _make_masks(h: int, w: int) -> dict[str, Callable[[], np.ndarray]]:
    """Functions that make the masks [h, w] bool of the buttons; true pixels are hidden."""
    return {
        "Clear": lambda: np.zeros((h, w), bool),
        "Left half": lambda: np.broadcast_to(np.arange(w) < w // 2, (h, w)),
        "Random 90 %": lambda: _random.permutation(h * w).reshape(h, w) < round(0.9 * h * w),
    }


def _on(listen: Callable, call: Callable, inputs: list, outputs: list) -> Any:
    """Adds an event. Events are answered one at a time; user errors appear on the page.

    Args:
      listen: an event listener of Gradio, such as button.click.
    """

    @functools.wraps(call)
    def answer(*args):
        try:
            return call(*args)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error

    limits: dict[str, Any] = dict(concurrency_id="session", concurrency_limit=1)
    return listen(answer, inputs, outputs, **limits, api_visibility="private")


def _gallery(**settings: Any) -> gr.Gallery:
    fixed: dict[str, Any] = dict(format="png", object_fit="contain", buttons=[], show_label=False)
    return gr.Gallery(**fixed, **settings, interactive=False)


def _image(**settings: Any) -> gr.Image:
    return gr.Image(format="png", image_mode=None, interactive=False, buttons=[], **settings)


def _can_work(*problems: str) -> bool:
    """Shows the problems that prevent a panel from working."""
    for problem in filter(None, problems):
        gr.Markdown(problem)
    return not any(problems)


class _Panels:
    """The panels, and the selected image that they share."""

    def __init__(self, session: Session):
        self.session, self.selected = session, gr.State()
        with gr.Row(elem_id="selection"):
            thumbnail = _image(height=72, width=72, container=False, min_width=72, scale=0)
            caption = gr.Markdown("No image is selected: choose one in Browse or Generate.")
            button = gr.Button("Random test image", size="sm", scale=0, min_width=160)
        self.selection = [self.selected, thumbnail, caption]
        button.interactive = "test" in session.splits
        self.random = _on(button.click, self._select_random, [], self.selection)

    def _select(self, example: Example) -> tuple:
        picture = to_picture(self.session.decode(example.latents[None], scale=1)[0])
        return example, picture, f"Selected: **{example.caption}**"

    def _select_random(self) -> tuple:
        rows = _random.integers(self.session.splits["test"], size=1)
        return self._select(self.session.examples("test", rows)[0])

    def _example_gallery(self) -> list:
        """[gallery whose images can be selected, state with their examples]."""
        gallery, examples = _gallery(allow_preview=False), gr.State([])

        def select(listed: list[Example], event: gr.SelectData) -> tuple:
            return self._select(listed[event.index])

        _on(gallery.select, select, [examples], self.selection)
        return [gallery, examples]

    def _class_menu(self, *others: tuple[str, int]) -> gr.Dropdown:
        names = [self.session.class_name(label) for label in range(self.session.num_classes)]
        choices = [*others, *zip(names, range(len(names)), strict=True)]
        return gr.Dropdown(choices, value=choices[0][1], label="Class")

    def _sampling_controls(self) -> list:
        """[guidance, steps, solver, scale]."""
        settings, side = self.session.config.generate, max(self.session.field.image_shape[:2])
        guidance, steps = settings.guidance.scale, settings.schedule.steps
        solvers = sorted({"euler", "heun", "dpmpp_2m", settings.solver.name})
        scales = [scale for scale in (1, 2, 4, 8, 16) if scale <= self.session.max_scale]
        usual = max(scale for scale in scales if scale == 1 or scale * side <= 64)
        top = max(20, guidance) if settings.label_dropout else 1
        return [
            gr.Slider(0, top, guidance, step=0.1, label="Guidance"),
            gr.Slider(1, max(200, steps), steps, step=1, label="Steps"),
            gr.Dropdown(solvers, value=settings.solver.name, label="Solver"),
            gr.Dropdown(scales, value=usual, label="Scale"),
        ]

    def browse(self, tab: gr.Tab) -> None:
        """Records of the functaset, page by page."""
        session, splits = self.session, list(self.session.splits)
        with gr.Row():
            first = "test" if "test" in splits else splits[0]
            split = gr.Dropdown(splits, value=first, label="Split")
            label = self._class_menu(("all", -1))
            count = gr.Dropdown([24, 48, 96], value=48, label="Images per page")
            start = gr.Number(0, precision=0, minimum=0, label="First row")
            beside = gr.Checkbox(not session.images_problem, label="Originals beside")
        note, following, earlier = gr.Markdown(visible=False), gr.State(), gr.State([])
        gallery = self._example_gallery()
        with gr.Row():
            back, forth = gr.Button("Previous"), gr.Button("Next")

        def show(split, label, count, start, beside):
            label = None if label < 0 else label
            found, following = session.browse(split, start=start or 0, count=count, label=label)
            items = []
            for example in found:
                pictures = [to_picture(session.decode(example.latents[None], scale=1)[0])]
                if beside and example.original is not None:
                    pictures.append(to_picture(example.original))
                items.append((np.hstack(pictures), example.caption))
            note = session.images_problem if beside else ""
            if not found:
                note = f"No such record: {split} has the rows 0 to {session.splits[split] - 1}."
            return items, found, gr.Markdown(note, visible=bool(note)), following

        def turn(start, following, earlier):
            return (start, earlier) if following is None else (following, [*earlier, start])

        # With no triggers, Gradio answers when the page loads and when an input changes.
        outputs = [*gallery, note, following]
        _on(functools.partial(gr.on, None), show, [split, label, count, start, beside], outputs)
        filtered = functools.partial(gr.on, [split.change, label.change])
        _on(filtered, lambda: (0, []), [], [start, earlier])
        _on(forth.click, turn, [start, following, earlier], [start, earlier])
        _on(back.click, lambda rows: ((rows or [0])[-1], rows[:-1]), [earlier], [start, earlier])

    def decode(self, tab: gr.Tab) -> None:
        """The selected image at any resolution, beside its bicubic enlargement."""
        session = self.session
        gr.Markdown("A field has no resolution: it can be evaluated at any number of positions.")
        scale = gr.Slider(1, session.max_scale, min(8, session.max_scale), step=1, label="Scale")
        with gr.Row():
            images = [_image(label=name, height=320) for name in ("Field", "Bicubic", "Original")]

        def show(example, scale):
            if example is None:
                return None, None, None
            image = session.decode(example.latents[None], scale=scale)[0]
            original = None if example.original is None else to_picture(example.original)
            return to_picture(image), to_picture(session.enlarge(example, scale=scale)), original

        changed = functools.partial(gr.on, [tab.select, scale.change], trigger_mode="always_last")
        for listen in (changed, self.random.then):
            _on(listen, show, [self.selected, scale], images)

    def generate(self, tab: gr.Tab) -> None:
        """Samples by class."""
        session = self.session
        if not _can_work(session.generator_problem):
            return
        gr.Markdown("Latents sampled from noise, decoded. The same settings give the same images.")
        with gr.Row():
            dropout = session.config.generate.label_dropout
            any_class = [("any", session.num_classes)] if dropout else []
            label = self._class_menu(("all, in turn", -1), *any_class)
            count = gr.Slider(1, 100, 30, step=1, label="Images")
            seed = gr.Number(session.config.seed, precision=0, minimum=0, label="Seed")
        with gr.Row():
            controls = self._sampling_controls()
        with gr.Row():
            start, another = gr.Button("Generate", variant="primary"), gr.Button("Another seed")
        outputs = self._example_gallery()

        def sample(label, count, seed, guidance, steps, solver, scale):
            labels = [k % session.num_classes if label < 0 else label for k in range(count)]
            examples = session.sample(labels, Sampling(guidance, steps, solver), seed=seed or 0)
            images = session.decode(np.stack([each.latents for each in examples]), scale=scale)
            captions = [each.caption for each in examples]
            return list(zip(map(to_picture, images), captions, strict=True)), examples

        new_seed = _on(another.click, lambda: int(_random.integers(10**6)), [], [seed])
        for listen in (start.click, new_seed.then):
            _on(listen, sample, [label, count, seed, *controls], outputs)

    def interpolate(self, tab: gr.Tab) -> None:
        """Images between two selected ones."""
        session, states = self.session, [gr.State(), gr.State()]
        if not _can_work(session.generator_problem):
            return
        gr.Markdown(
            "The images between two selected ones. Both are sampled again from their noise: an "
            "image of the data returns more exactly with more steps and guidance 1."
        )
        with gr.Row():
            for name, state in zip(("First", "Last"), states, strict=True):
                with gr.Column(min_width=160):
                    image = _image(label=name, height=150)
                    button = gr.Button(f"{name}: use the selected image", size="sm")
                _on(button.click, self._show_selected, [self.selected], [state, image])
            with gr.Column(scale=3):
                with gr.Row():
                    count = gr.Slider(3, 33, 17, step=1, label="Images")
                    controls = self._sampling_controls()
                start = gr.Button("Interpolate", variant="primary")
        frames = _gallery(preview=True, height=480)

        def interpolate(first, last, count, guidance, steps, solver, scale):
            if first is None or last is None:
                raise ValueError("Choose a first and a last image.")
            sampling = Sampling(guidance, steps, solver)
            latents = session.interpolate(first, last, sampling, count=count)
            images = session.decode(latents, scale=scale)
            items = [(to_picture(each), f"{k + 1} of {count}") for k, each in enumerate(images)]
            return gr.Gallery(items, selected_index=count // 2)

        _on(start.click, interpolate, [*states, count, *controls], [frames])

    def _show_selected(self, example: Example | None) -> tuple:
        return self._select(example)[:2] if example else (None, None)

    def inpaint(self, tab: gr.Tab) -> None:
        """Hidden parts of the selected image, with the generator as prior."""
        session = self.session
        if not _can_work(session.generator_problem, session.images_problem):
            return
        h, w, _ = session.field.image_shape
        zoom = max(1, _CANVAS_SIDE // max(h, w))
        masks = _make_masks(h, w)
        gr.Markdown(
            "Paint over the selected image. The hidden pixels are sampled with the generator as "
            "prior; without a prior, latents are fitted to the visible pixels. PSNR is over the "
            "hidden pixels."
        )
        with gr.Row():
            with gr.Column():
                canvas = gr.ImageEditor(
                    format="png",
                    sources=(),
                    transforms=(),
                    layers=False,
                    buttons=[],
                    canvas_size=(zoom * w, zoom * h),
                    fixed_canvas=True,
                    brush=gr.Brush(2 * zoom, [f"rgb{_HIDDEN_COLOR}"], color_mode="fixed"),
                    show_label=False,
                )
                with gr.Row():
                    buttons = [gr.Button(name, size="sm", min_width=90) for name in masks]
            with gr.Column():
                with gr.Row():
                    count = gr.Slider(1, 16, 8, step=1, label="Samples")
                    steps = gr.Slider(1, 100, 20, step=1, label="Steps")
                    seed = gr.Number(0, precision=0, minimum=0, maximum=10**6, label="Seed")
                start = gr.Button("Inpaint", variant="primary")
                results = _gallery()

        def show(make_mask, example):
            if example is None or example.original is None:
                return None
            layer = make_mask()[..., None] * np.array([*_HIDDEN_COLOR, 255], np.uint8)
            pair = (to_picture(example.original), layer)
            background, layer = (enlarge(image[None], zoom)[0] for image in pair)
            return {"background": background, "layers": [layer], "composite": None}

        def inpaint(example, drawing, count, steps, seed):
            if example is None or example.original is None:
                raise ValueError("Select an image of the data set first.")
            image, hidden = example.original, hidden_pixels(drawing, (h, w))
            answer = session.inpaint(image, hidden, samples=count, steps=steps, seed=seed or 0)
            return [
                (to_picture(image), f"{name}, {psnr:.1f} dB")
                for name, (image, psnr) in answer.items()
            ]

        for button, mask in zip(buttons, masks.values(), strict=True):
            _on(button.click, functools.partial(show, mask), [self.selected], [canvas])
        for listen in (tab.select, self.random.then):
            _on(listen, functools.partial(show, masks["Clear"]), [self.selected], [canvas])
        _on(start.click, inpaint, [self.selected, canvas, count, steps, seed], [results])
