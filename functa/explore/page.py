"""The page: six panels on a Session, built with Gradio."""

import functools
import pathlib

import gradio as gr
import numpy as np

from functa.data.picture_files import read_picture
from functa.explore import widgets
from functa.explore.session import Example, Sampling, Session
from functa.explore.widgets import to_picture
from functa.runtime.image_io import enlarge

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
_NO_SELECTION = "No image is selected: choose one in Browse, Picture or Generate."
_CANVAS_SIDE = 320  # pixels of the enlarged image to paint on
_random = np.random.default_rng()


def make_page(session: Session) -> gr.Blocks:
    """Builds the page."""
    shapes = session.run.image_shape, session.run.latent_shape
    image, latents = ("×".join(map(str, shape)) for shape in shapes)
    name, count = session.run.config.name, sum(session.splits.values())
    with gr.Blocks(title=f"{name}: explore", analytics_enabled=False) as page:
        gr.Markdown(f"# {name}\n{count:,} functa: images {image}, latents {latents}")
        panels = _Panels(session)
        for name in ("Browse", "Picture", "Decode", "Generate", "Interpolate", "Inpaint"):
            with gr.Tab(name) as tab:
                getattr(panels, name.lower())(tab)
    return page


class _Panels:
    """The panels, and the selected image that they share."""

    def __init__(self, session: Session):
        self.session, self.selected = session, gr.State()
        with gr.Row(elem_id="selection"):
            thumbnail = widgets.image(height=72, width=72, container=False, min_width=72, scale=0)
            caption = gr.Markdown(_NO_SELECTION)
            button = gr.Button("Random test image", size="sm", scale=0, min_width=160)
        self.selection = [self.selected, thumbnail, caption]
        button.interactive = "test" in session.splits
        self.random = widgets.on(button.click, self._select_random, [], self.selection)

    def _select(self, example: Example) -> tuple:
        picture = to_picture(self.session.decode(example.latents[None], scale=1)[0])
        return example, picture, f"Selected: **{example.caption}**"

    def _no_selection(self) -> tuple:
        return None, None, _NO_SELECTION

    def _select_random(self) -> tuple:
        rows = _random.integers(self.session.splits["test"], size=1)
        return self._select(self.session.examples("test", rows)[0])

    def _example_gallery(self) -> list:
        """[gallery whose images can be selected, state with their examples]."""
        gallery, examples = widgets.gallery(allow_preview=False), gr.State([])

        def select(listed: list[Example], event: gr.SelectData) -> tuple:
            return self._select(listed[event.index])

        widgets.on(gallery.select, select, [examples], self.selection)
        return [gallery, examples]

    def _class_menu(self, *others: tuple[str, int]) -> gr.Dropdown:
        names = [self.session.class_name(label) for label in range(self.session.num_classes)]
        choices = [*others, *zip(names, range(len(names)), strict=True)]
        return gr.Dropdown(choices, value=choices[0][1], label="Class")

    def _sampling_controls(self) -> list:
        """[guidance, steps, solver, scale]."""
        settings, side = self.session.run.config.generate, max(self.session.run.image_shape[:2])
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
        if not widgets.can_work(session.functaset_problem):
            return
        with gr.Row():
            split = gr.Dropdown(splits, value=splits[-1], label="Split")
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
        widgets.on(
            functools.partial(gr.on, None), show, [split, label, count, start, beside], outputs
        )
        filtered = functools.partial(gr.on, [split.change, label.change])
        widgets.on(filtered, lambda: (0, []), [], [start, earlier])
        widgets.on(forth.click, turn, [start, following, earlier], [start, earlier])
        widgets.on(
            back.click, lambda rows: ((rows or [0])[-1], rows[:-1]), [earlier], [start, earlier]
        )

    def picture(self, tab: gr.Tab) -> None:
        """A picture of the user as a functa; it becomes the selected image."""
        session = self.session
        h, w, _ = session.run.image_shape
        gr.Markdown(
            f"Your own picture as a functa. Its largest centered part is resized to {h}×{w} pixels "
            "and encoded. It stays on this machine, and becomes the selected image."
        )
        with gr.Row():
            upload = gr.Image(
                type="filepath", sources=["upload", "clipboard"], label="Picture", height=320
            )
            names = ("Resized", "Reconstruction", "Decoded at 4×", "Latents")
            images = [widgets.image(label=name, height=320) for name in names]

        def show(path):
            if path is None:
                return (*self._no_selection(), *[None] * 4)
            image = read_picture(
                pathlib.Path(path), image_shape=session.run.image_shape, resize="crop"
            )
            example = session.encode(image, name="own picture")
            decoded = [session.decode(example.latents[None], scale=scale)[0] for scale in (1, 4)]
            pictures = [
                *map(to_picture, (image, *decoded)),
                widgets.latent_picture(example.latents),
            ]
            return (*self._select(example), *pictures)

        widgets.on(upload.change, show, [upload], [*self.selection, *images])

    def decode(self, tab: gr.Tab) -> None:
        """The selected image at any resolution, beside its bicubic enlargement."""
        session = self.session
        gr.Markdown("A field has no resolution: it can be evaluated at any number of positions.")
        scale = gr.Slider(1, session.max_scale, min(8, session.max_scale), step=1, label="Scale")
        with gr.Row():
            images = [
                widgets.image(label=name, height=320) for name in ("Field", "Bicubic", "Original")
            ]

        def show(example, scale):
            if example is None:
                return None, None, None
            image = session.decode(example.latents[None], scale=scale)[0]
            original = None if example.original is None else to_picture(example.original)
            return to_picture(image), to_picture(session.enlarge(example, scale=scale)), original

        changed = functools.partial(gr.on, [tab.select, scale.change], trigger_mode="always_last")
        for listen in (changed, self.random.then):
            widgets.on(listen, show, [self.selected, scale], images)

    def generate(self, tab: gr.Tab) -> None:
        """Samples by class."""
        session = self.session
        if not widgets.can_work(session.generator_problem):
            return
        gr.Markdown("Latents sampled from noise, decoded. The same settings give the same images.")
        with gr.Row():
            dropout = session.run.config.generate.label_dropout
            any_class = [("any", session.num_classes)] if dropout else []
            label = self._class_menu(("all, in turn", -1), *any_class)
            count = gr.Slider(1, 100, 30, step=1, label="Images")
            seed = gr.Number(session.run.config.seed, precision=0, minimum=0, label="Seed")
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

        new_seed = widgets.on(another.click, lambda: int(_random.integers(10**6)), [], [seed])
        for listen in (start.click, new_seed.then):
            widgets.on(listen, sample, [label, count, seed, *controls], outputs)

    def interpolate(self, tab: gr.Tab) -> None:
        """Images between two selected ones."""
        session, states = self.session, [gr.State(), gr.State()]
        if not widgets.can_work(session.generator_problem):
            return
        gr.Markdown(
            "The images between two selected ones, which may be your own pictures. Both are sampled "
            "again from their noise; they return more exactly with more steps and guidance 1."
        )
        with gr.Row():
            for name, state in zip(("First", "Last"), states, strict=True):
                with gr.Column(min_width=160):
                    image = widgets.image(label=name, height=150)
                    button = gr.Button(f"{name}: use the selected image", size="sm")
                widgets.on(button.click, self._show_selected, [self.selected], [state, image])
            with gr.Column(scale=3):
                with gr.Row():
                    count = gr.Slider(3, 33, 17, step=1, label="Images")
                    controls = self._sampling_controls()
                start = gr.Button("Interpolate", variant="primary")
        frames = widgets.gallery(preview=True, height=480)

        def interpolate(first, last, count, guidance, steps, solver, scale):
            if first is None or last is None:
                raise ValueError("Choose a first and a last image.")
            sampling = Sampling(guidance, steps, solver)
            latents = session.interpolate(first, last, sampling, count=count)
            images = session.decode(latents, scale=scale)
            items = [(to_picture(each), f"{k + 1} of {count}") for k, each in enumerate(images)]
            return gr.Gallery(items, selected_index=count // 2)

        widgets.on(start.click, interpolate, [*states, count, *controls], [frames])

    def _show_selected(self, example: Example | None) -> tuple:
        return self._select(example)[:2] if example else (None, None)

    def inpaint(self, tab: gr.Tab) -> None:
        """Hidden parts of the selected image, with the generator as prior."""
        session = self.session
        if not widgets.can_work(session.generator_problem, session.images_problem):
            return
        h, w, _ = session.run.image_shape
        zoom = max(1, _CANVAS_SIDE // max(h, w))
        masks = widgets.make_masks(h, w)
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
                    brush=gr.Brush(2 * zoom, [f"rgb{widgets.HIDDEN_COLOR}"], color_mode="fixed"),
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
                results = widgets.gallery()

        def show(make_mask, example):
            if example is None or example.original is None:
                return None
            layer = make_mask()[..., None] * np.array([*widgets.HIDDEN_COLOR, 255], np.uint8)
            pair = (to_picture(example.original), layer)
            background, layer = (enlarge(image[None], zoom)[0] for image in pair)
            return {"background": background, "layers": [layer], "composite": None}

        def inpaint(example, drawing, count, steps, seed):
            if example is None or example.original is None:
                raise ValueError("Select an image of the data set first.")
            image, hidden = example.original, widgets.hidden_pixels(drawing, (h, w))
            answer = session.inpaint(image, hidden, samples=count, steps=steps, seed=seed or 0)
            return [
                (to_picture(image), f"{name}, {psnr:.1f} dB")
                for name, (image, psnr) in answer.items()
            ]

        for button, mask in zip(buttons, masks.values(), strict=True):
            widgets.on(button.click, functools.partial(show, mask), [self.selected], [canvas])
        for listen in (tab.select, self.random.then):
            widgets.on(listen, functools.partial(show, masks["Clear"]), [self.selected], [canvas])
        widgets.on(start.click, inpaint, [self.selected, canvas, count, steps, seed], [results])
