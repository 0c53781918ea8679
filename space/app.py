"""The page: a sound and captions in, ratings out.

    python app.py --model FOLDER_OR_HUB_ID

Uploaded to the Hub, this folder is a Space, which takes the model from its variable XACLE_MODEL.
"""

import argparse
import csv
import errno
import os
import socket
import sys
from html import escape
from pathlib import Path

import gradio as gr

from drawing import draw_empty, draw_problem, draw_result
from rating import MAX_CAPTIONS, InputError, Rater

HERE = Path(__file__).parent
ONE_HOUR = 3600
MAX_FILE_SIZE = "100mb"
SYSTEM_FONT = ("ui-sans-serif", "system-ui", "sans-serif")
SHOW_RESULT = """() => {
    const result = document.getElementById("result");
    if (result.getBoundingClientRect().top > 0.7 * innerHeight) result.scrollIntoView({ behavior: "smooth" });
}"""
PLACEHOLDER = "A dog barks twice\nRain falls on a roof"


def read_examples(folder: Path) -> dict[str, tuple[Path, list[str]]]:
    """A folder of sounds with `captions.csv` (`wav_file_name,text`) -> `{title: (file, captions)}`, in the table's order.

    Raises:
        ValueError: if the table or one of its sounds is missing, or a row is incomplete.
    """
    table, examples = folder / "captions.csv", {}
    if not table.is_file():
        raise ValueError(f"'{folder}' is no folder of examples: it has no captions.csv with the columns wav_file_name and text")
    with table.open(encoding="utf-8-sig", newline="") as file:
        for line, row in enumerate(csv.DictReader(file), 2):
            if not row.get("wav_file_name") or not row.get("text"):
                raise ValueError(f"'{table}', line {line}: wav_file_name or text is missing")
            sound = folder / row["wav_file_name"]
            if not sound.is_file():
                raise ValueError(f"'{table}', line {line}: there is no sound '{sound}'")
            title = sound.stem.replace("_", " ").capitalize()
            examples.setdefault(title, (sound, []))[1].append(row["text"])
    return examples


def check_port(port: int) -> None:
    """Raise a ValueError if the page cannot be served at `port`; gradio does, later and without a reason."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            taken = getattr(error, "errno", None) == errno.EADDRINUSE
            reason = "is taken" if taken else f"cannot be used ({getattr(error, 'strerror', error)})"
            raise ValueError(f"port {port} {reason}; choose another --port") from error


def introduction(model: str) -> str:
    if Path(model).is_dir():
        name = escape(Path(model).resolve().name)
    else:
        name = f'<a href="https://huggingface.co/{escape(model)}" target="_blank" rel="noopener">{escape(model)}</a>'
    return f"""
<header class="xr-header"><h1>Does the caption match the sound?</h1>
<p>A model rates it on the scale people rate on, from 0 (not at all) to 10 (perfectly). Model: {name}</p></header>"""


def build_page(rater: Rater, model: str, examples: dict[str, tuple[Path, list[str]]]) -> gr.Blocks:
    """The page of a model. A problem with a visitor's sound or captions is written where the ratings would be."""

    def rate(audio: str | None, captions: str, progress=gr.Progress()) -> str:  # noqa: B008
        try:
            result = rater.rate(audio, captions, lambda done, of: progress((done, of), desc="Scoring", unit="windows"))
        except InputError as problem:
            return draw_problem(str(problem))
        return draw_result(result)

    # Visitors' sounds are deleted within two hours.
    with gr.Blocks(title="xacle", analytics_enabled=False, delete_cache=(ONE_HOUR, ONE_HOUR)) as page:
        gr.HTML(introduction(model), apply_default_css=False)
        output = gr.HTML(draw_empty(), elem_id="result", apply_default_css=False, render=False)
        with gr.Row():
            with gr.Column(scale=4, min_width=320):
                audio = gr.Audio(label="Sound", sources=["upload", "microphone"], type="filepath", buttons=[], elem_id="sound")
                captions = gr.Textbox(
                    label="Captions, one a line",
                    placeholder=PLACEHOLDER,
                    lines=3,
                    max_lines=MAX_CAPTIONS,
                    elem_id="captions",
                )
                button = gr.Button("Rate", variant="primary", elem_id="rate")
                if examples:
                    gr.Examples(
                        [[str(sound), "\n".join(texts)] for sound, texts in examples.values()],
                        [audio, captions],
                        output,
                        rate,
                        example_labels=list(examples),
                        cache_examples=False,
                        run_on_click=True,
                        label="Examples",
                        elem_id="examples",
                    )
            with gr.Column(scale=6, min_width=320):
                output.render()
        audio.input(draw_empty, None, output, queue=False, api_visibility="private")
        gr.on([button.click, captions.submit], rate, [audio, captions], output, api_name="rate")
        output.change(None, js=SHOW_RESULT)
    return page


def theme() -> gr.themes.Base:
    base = gr.themes.Base(primary_hue="teal", neutral_hue="zinc", font=SYSTEM_FONT, font_mono="monospace")
    colors = {
        "body_background_fill": ("#f7f8f6", "#14181b"),
        "body_text_color": ("#1d2226", "#e8eae8"),
        "block_background_fill": ("#ffffff", "#1b2023"),
        "block_border_color": ("#dfe3e0", "#363d42"),
        "input_background_fill": ("#f3f4f1", "#262d31"),
        "button_primary_background_fill": ("#0f6e6c", "#0f6e6c"),
        "button_primary_background_fill_hover": ("#0b5a58", "#14837f"),
    }
    both = {
        f"{name}{suffix}": color for name, pair in colors.items() for suffix, color in zip(("", "_dark"), pair, strict=True)
    }
    return base.set(block_radius="12px", block_label_radius="12px 0 12px 0", button_large_radius="10px", **both)


def main(arguments: list[str] | None = None) -> None:
    """Load the model and serve the page until it is stopped."""
    parser = argparse.ArgumentParser(description="Serve a page that rates how well a sound matches captions.")
    parser.add_argument("--model", default=os.environ.get("XACLE_MODEL"), help="Folder or Hub id; XACLE_MODEL by default.")
    parser.add_argument("--examples", type=Path, default=HERE / "examples", help="Folder of sounds with a captions.csv.")
    parser.add_argument("--host", help="Address to listen at; this machine only, by default. 0.0.0.0 for other machines, too.")
    parser.add_argument("--port", type=int, help="7860, or the next that is free, by default.")
    options = parser.parse_args(arguments)
    if not options.model:
        sys.exit("error: no model is given; pass --model, or set XACLE_MODEL (in a Space: Settings, Variables)")
    try:
        examples = read_examples(options.examples)
        if options.port is not None:
            check_port(options.port)
    except ValueError as error:
        sys.exit(f"error: {error}")
    try:
        rater = Rater(options.model)
    except (OSError, ValueError) as error:
        sys.exit(f"error: '{options.model}' cannot be used: {error}")
    build_page(rater, options.model, examples).launch(
        server_name=options.host,
        server_port=options.port,
        allowed_paths=[str(options.examples)],
        max_file_size=MAX_FILE_SIZE,
        theme=theme(),
        css_paths=HERE / "style.css",
        footer_links=[],
        ssr_mode=False,
    )


if __name__ == "__main__":
    main()
