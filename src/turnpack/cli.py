"""The command line: arguments in, one call, what a person should see out.

Owns options, messages and exit codes: 0 done, 1 the data gave nothing or is not what it should be
(`--strict`, `check`, `verify`), 2 what was asked for cannot be done, 130 interrupted. Computes
nothing; what is slow to import is imported by the command that needs it.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from ._version import __version__

if TYPE_CHECKING:
    from rich.console import Console

    from .bins import Row
    from .nouns import Reject
    from .prepare import Progress
    from .reading import Reader

Command = TypeVar("Command", bound=Callable[..., Any])


class Failure(Exception):
    """An error of which a person needs one line, and a shell the exit code."""

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character is no reason to stop; a closed stream is None.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            status = turnpack.main(arguments, prog_name="turnpack", standalone_mode=False)
    except Failure as error:
        _say("error", str(error))
        return error.exit_code
    except click.ClickException as error:
        _say("error", error.format_message())
        return error.exit_code
    return status if isinstance(status, int) else 0


class _Group(click.Group):
    """Commands whose expected errors are one line each; any other keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            status = super().invoke(ctx)
            if sys.stdout is not None:
                sys.stdout.flush()
            return status
        except KeyboardInterrupt:
            raise Failure("interrupted", 130) from None
        except BrokenPipeError:  # `turnpack preview DIR | head`: click leaves quietly
            raise
        except OSError as error:
            raise Failure(_os_error(error)) from None


def _say(kind: str, message: str) -> None:
    from .reading import one_line

    if sys.stderr is not None:
        print(f"turnpack: {kind}: {one_line(message)}", file=sys.stderr)


def _warn(message: Warning | str, *args: Any, **kwargs: Any) -> None:
    _say("warning", str(message))


def _os_error(error: OSError) -> str:
    if error.filename is None or error.strerror is None:
        return str(error)
    return f"{os.fsdecode(error.filename)}: {error.strerror}"


@contextmanager
def _asked() -> Iterator[None]:
    """Take a ValueError for a mistake in what was asked for: here it is none of turnpack."""
    try:
        yield
    except (ValueError, ImportError) as error:
        raise Failure(str(error)) from None


@click.group(
    cls=_Group, no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, message="turnpack %(version)s")
def turnpack() -> None:
    """Chat data in, packed training rows out."""


def _encoding(
    required: bool, *, length: bool | None = None, backend: str = "auto"
) -> Callable[[Command], Command]:
    """Add the options that decide how a conversation becomes tokens.

    `required`: whether tokenizer and template must be given, and the length unless `length` says
    otherwise. `backend`: the tokenizer backend by default.
    """
    options = [
        click.option(
            "--tokenizer",
            metavar="PATH",
            required=required,
            help="Folder, tokenizer.json or SentencePiece .model.",
        ),
        click.option(
            "--template",
            metavar="NAME",
            required=required,
            help="Chat template: one of `turnpack templates`, auto (the tokenizer's own) or a "
            ".jinja file.",
        ),
        click.option(
            "--max-length",
            type=int,
            metavar="N",
            required=required if length is None else length,
            help="Tokens a conversation may have.",
        ),
        click.option(
            "--truncate",
            metavar="HOW",
            default="right",
            show_default=True,
            help="A longer one: right (cut), turns (drop the oldest), split (over several rows) "
            "or reject.",
        ),
        click.option(
            "--train-on",
            metavar="WHAT",
            default="assistant",
            show_default=True,
            help="Targets: assistant (every answer), last (the last answer) or all.",
        ),
        click.option(
            "--boundary",
            metavar="HOW",
            default="cut",
            show_default=True,
            help="Text at the start of a target: cut (as at inference) or whole (as in TRL).",
        ),
        click.option(
            "--system", metavar="TEXT", help="System message of conversations that have none."
        ),
        click.option(
            "--format", metavar="NAME", help="Format of the files; detected row by row otherwise."
        ),
        click.option("--bos-token", metavar="TEXT", help="BOS, if the tokenizer does not say."),
        click.option("--eos-token", metavar="TEXT", help="EOS, if the tokenizer does not say."),
        click.option(
            "--tokenizer-backend",
            type=click.Choice(["auto", "hf", "gigatoken"]),
            default=backend,
            show_default=True,
            help="hf: the tokenizer's own library. gigatoken: faster (pip install "
            "'turnpack[fast]'), compared with the library on the first texts and a sample of all "
            "others, and given up at one difference. auto: gigatoken where it is installed and "
            "supports the tokenizer.",
        ),
    ]

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


@turnpack.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@_encoding(required=False)
@click.option("--output", metavar="DIR", help="Directory to write into.")
@click.option(
    "--capacity", type=int, metavar="N", help="Tokens a bin may have; --max-length by default."
)
@click.option(
    "--strategy",
    metavar="NAME",
    default="stream",
    show_default=True,
    help="Packing: stream (as rows come), best_fit or first_fit (all tokens in memory), in_order "
    "(each row behind the one before it) or none (each row by itself).",
)
@click.option(
    "--window",
    type=int,
    metavar="N",
    default=4096,
    show_default=True,
    help="Rows of a stream that wait for the best bin.",
)
@click.option(
    "--seed", type=int, metavar="N", default=0, show_default=True, help="Order of the bins."
)
@click.option(
    "--validation",
    type=float,
    metavar="SHARE",
    default=0.0,
    show_default=True,
    help="Share of the conversations that goes into validation-*.parquet.",
)
@click.option(
    "--shard-tokens",
    type=int,
    metavar="N",
    default=1 << 26,
    show_default=True,
    help="Tokens that a file may have.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with a run that was stopped or killed; begin where there is none.",
)
@click.option("--strict", is_flag=True, help="Stop at the first bad row.")
@click.option(
    "--sink",
    "sinks",
    multiple=True,
    type=click.Choice(["numpy", "megatron", "bridge"]),
    help="Also write arrays for turnpack.torch.PackedDataset (numpy), Megatron's .bin and .idx or "
    "Megatron-Bridge's packed Parquet; may be given several times.",
)
@click.option(
    "--page/--no-page",
    default=True,
    help="Write report.html, which `turnpack report` can do later as well.",
)
@click.option(
    "--workers",
    type=int,
    metavar="N",
    help="Processes that encode, by default as the machine has; the output does not depend on it.",
)
@click.option(
    "--ray",
    is_flag=False,
    flag_value="",
    metavar="[ADDRESS]",
    help="Let Ray do it (pip install 'turnpack[ray]'): the cluster at ADDRESS, without one a Ray "
    "that is started here. Stands behind FILE....",
)
@click.pass_context
def prepare(
    context: click.Context, /, files: tuple[str, ...], ray: str | None, **options: Any
) -> int:
    """Turn chat files into packed training bins.

    Reads .json, .jsonl (also .gz, .zst) and .parquet in the usual chat formats, also mixed. Writes
    data/*.parquet, report.json, report.html, rejects.jsonl, manifest.json and the tokenizer into
    DIR; --output, --tokenizer, --template and --max-length are required.

    FILE may be a recipe instead, a .toml that says what to do with which files and may hold any of
    the options; those given here take their place.
    """
    from . import prepare as here
    from . import ray as on_ray
    from .nouns import RowError
    from .output import HIDDEN, JOURNAL
    from .report import table

    if ray is not None and os.path.exists(ray):
        raise Failure(f"--ray takes {ray} for an address: write it behind the files")
    jobs: Any = here if ray is None else on_ray
    place = {} if ray is None else {"address": ray or None}
    recipe = any(file.endswith(".toml") for file in files)
    if recipe and len(files) > 1:
        raise Failure("a recipe is given alone: its [[sources]] say which files to read")
    given = {
        key: value
        for key, value in options.items()
        if context.get_parameter_source(key) is not ParameterSource.DEFAULT
    }
    for key in () if recipe else ("tokenizer", "template", "max_length", "output"):
        if key not in given:
            raise Failure(f"Missing option '--{key.replace('_', '-')}'.")
    try:
        with _cleaning_up(), _bar() as tell:
            if recipe:
                report = jobs.prepare_recipe(files[0], progress=tell, **place, **given)
            else:
                report = jobs.prepare(files, progress=tell, **place, **options)
    except KeyboardInterrupt:
        output = options["output"]
        left = output is not None and (Path(output) / HIDDEN / JOURNAL).exists()
        how = "; the same command with --resume goes on" if left else ""
        raise Failure(f"interrupted{how}", 130) from None
    except here.OptionError as error:
        raise Failure(str(error)) from None
    except RowError as error:
        raise Failure(str(error), 1) from None
    click.echo(table(report))
    folder = Path(report.output)
    if not report.bins:
        read = report.conversations["read"]
        if read == 0:
            raise Failure("nothing to pack: the input has no rows", 1)
        rejected = report.conversations["rejected"]
        raise Failure(
            f"nothing to pack: {read:,} read, {rejected:,} rejected, "
            f"see {folder / 'rejects.jsonl'}",
            1,
        )
    name = "report.html" if report.options["page"] else "report.json"
    click.echo(f"bins in {folder / 'data'}, report in {folder / name}")
    return 0


@contextmanager
def _cleaning_up() -> Iterator[None]:
    """Make SIGTERM an exception, as SIGINT is: so it removes what is not finished."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _bar() -> Iterator[Callable[[Progress], None]]:
    """Show progress on a terminal, and nothing anywhere else."""
    from rich import progress as rich
    from rich.console import Console

    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.TaskProgressColumn(),
        rich.TextColumn("{task.fields[rates]}"),
        rich.TimeElapsedColumn(),
        rich.TextColumn("left"),
        rich.TimeRemainingColumn(),
    )
    quiet = sys.stderr is None or not sys.stderr.isatty()
    bar = rich.Progress(*columns, console=Console(stderr=True), disable=quiet, transient=True)
    tasks: dict[str, rich.TaskID] = {}

    def tell(now: Progress) -> None:
        bar.start()  # not before: an error that comes first stands alone
        if now.stage not in tasks:
            tasks[now.stage] = bar.add_task(now.stage, rates="")
        rates = f"{now.tokens / now.seconds:,.0f} tokens/s"
        if now.stage == "encode":
            rates = f"{now.rows / now.seconds:,.0f} rows/s, {rates}, {now.rejected:,} rejected"
        if now.utilization is not None:
            rates += f", bins {now.utilization:.2%} full"
        task = tasks[now.stage]
        bar.update(task, completed=now.done, total=max(1, now.total), rates=rates)

    try:
        yield tell
    finally:
        bar.stop()


@turnpack.command()
@click.argument("path", metavar="FILE|DIR", type=click.Path(path_type=Path))
@click.option(
    "--bins",
    "most",
    type=click.IntRange(1),
    metavar="N",
    help="Bins to show, or rows where they are chosen or not packed yet; 2 by default, of chosen "
    "rows 10.",
)
@click.option("--row", type=click.IntRange(0), metavar="N", help="The row of this number, from 0.")
@click.option("--find", metavar="TEXT", help="Rows whose text holds TEXT.")
@click.option(
    "--source",
    metavar="NAME",
    help="Rows of a file, or the one of chats.jsonl:17 or chats.json[17].",
)
@click.option("--html", metavar="FILE", help="Write them as a page instead of showing them.")
@_encoding(required=False, backend="hf")
def preview(
    path: Path,
    most: int | None,
    html: str | None,
    tokenizer: str | None,
    template: str | None,
    **options: Any,
) -> int:
    """Show what the model will learn, token by token.

    DIR is what `prepare` wrote, FILE one of its Parquet files, or chat data: that needs
    --tokenizer and --template. In a pipe it is plain text, the same for the same rows.
    """
    from . import bins, tokenizers
    from . import preview as show
    from .reading import Reader

    console = _console()
    bos, eos = options.pop("bos_token"), options.pop("eos_token")
    with_backend = options.pop("tokenizer_backend")
    wanted = show.Wanted(most or 2, *(options.pop(key) for key in ("row", "find", "source")))
    if most is None and wanted.is_choice:
        wanted = replace(wanted, most=10)
    if path.is_dir() or bins.is_bins(path):
        files = bins.files(path)
        if not files:
            raise Failure(f"{path} holds no bins: it is not what `turnpack prepare` writes")
        beside = (path if path.is_dir() else path.parent.parent) / "tokenizer"
        with _asked():
            backend = tokenizers.load(tokenizer or beside, bos=bos, eos=eos, backend=with_backend)
        reader = Reader(backend)
        try:
            packed = show.packed_bins(files, wanted.most)
            if wanted.is_choice:
                return _show_rows(console, show.packed_rows(files, wanted, reader), reader, html)
            if html is not None:
                return _show_rows(console, (row for b in packed for row in b.rows), reader, html)
            show.show_legend(console)
            show.show_bins(console, packed, _capacity(path), reader)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise Failure(f"{path} holds no bins of this tokenizer: {error}") from None
        return 0

    from . import records
    from .encode import Encoder

    format = options.pop("format")
    with _asked():
        conversations = records.read([path], format=format)
        if tokenizer is None or template is None:
            raise Failure(f"{path} is chat data: its preview needs --tokenizer and --template")
        backend = tokenizers.load(tokenizer, bos=bos, eos=eos, backend=with_backend)
        encoder = Encoder(backend, template, **options)
    reader = Reader(backend)
    return _show_rows(
        console, show.encoded_rows(conversations, encoder, wanted, reader), reader, html
    )


def _show_rows(
    console: Console, rows: Iterator[Row | Reject], reader: Reader, html: str | None
) -> int:
    """Print rows, or write them into a page; rejects are printed in any case."""
    from . import preview as show
    from .nouns import Reject

    first = next(rows, None)
    if first is None:
        raise Failure("no row is like that", 1)
    rows = chain([first], rows)
    if html is None:
        show.show_legend(console)
        for row in rows:
            show.show_row(console, row, reader)
        return 0
    kept = []
    for row in rows:
        if isinstance(row, Reject):
            show.show_row(console, row, reader)
        else:
            kept.append(row)
    show.save(kept, reader, html)
    click.echo(f"{len(kept):,} row{'s' * (len(kept) != 1)} in {html}")
    return 0


def _capacity(path: Path) -> int | None:
    """Return the capacity of the bins, where there is a report that says so."""
    from . import report

    try:
        return int(report.read(path if path.is_dir() else path.parent.parent)["capacity"])
    except (OSError, ValueError):
        return None


@turnpack.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--html", metavar="FILE", help="Write the page there instead of DIR/report.html.")
def report(folder: Path, html: str | None) -> None:
    """Write the page of what `prepare` wrote anew, and print its numbers.

    The page holds everything it shows: it opens offline and can be sent.
    """
    from . import report as reports

    if not folder.is_dir():
        raise Failure(f"{folder}: no such directory")
    with _asked():
        found = reports.read(folder)
        page = reports.write_page(folder, file=html)
    if html is None:
        reports.relist(folder)
    click.echo(reports.table(reports.of(found)))
    click.echo(f"the page is {page}")


@turnpack.command()
@click.argument("before", metavar="DIR_A", type=click.Path(path_type=Path))
@click.argument("after", metavar="DIR_B", type=click.Path(path_type=Path))
@click.option(
    "--rows",
    type=click.IntRange(0),
    metavar="N",
    default=3,
    show_default=True,
    help="Rows of each kind of difference to show.",
)
def compare(before: Path, after: Path, rows: int) -> int:
    """Show what changed between two preparations: rows whose ids or targets differ.

    Rows are the same conversation where their sources are the same. The exit code is 1 where
    something differs.
    """
    from . import compare as compares

    with _asked():
        found = compares.compare(before, after)
    compares.show(_console(), found, rows)
    return int(found.differs)


@turnpack.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@_encoding(required=True, length=False)
@click.option("--against", metavar="NAME", help="Template to compare ids and targets with.")
def check(files: tuple[str, ...], against: str | None, **options: Any) -> int:
    """Tell whether training is the same as inference, row by row.

    Compares the ids before every answer with those of its inference prompt, and looks at stop
    tokens and BOS. The exit code is 1 when something is wrong.
    """
    from . import check as checks
    from . import records, tokenizers
    from .encode import Encoder

    tokenizer, template = options.pop("tokenizer"), options.pop("template")
    bos, eos, format = (options.pop(key) for key in ("bos_token", "eos_token", "format"))
    with_backend = options.pop("tokenizer_backend")
    with _asked():
        backend = tokenizers.load(tokenizer, bos=bos, eos=eos, backend=with_backend)
        rows = records.read(files, format=format)
        encoder = Encoder(backend, template, **options)
        other = None if against is None else Encoder(backend, against, **options)
        found = checks.check(rows, encoder, against=other)
    click.echo(checks.page(found))
    return int(found.wrong)


@turnpack.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
def verify(directory: Path) -> int:
    """Tell whether DIR still is what `prepare` wrote.

    Compares every file with the checksum in manifest.json, and what the bins hold with the numbers
    in report.json. Prints a line for each difference; the exit code is 1 when there is one.
    """
    from . import verify as checks
    from .reading import one_line

    totals, problems = checks.Totals(), 0
    try:
        for problem in checks.verify(directory, totals):
            click.echo(one_line(problem))
            problems += 1
    except checks.NoOutput as error:
        raise Failure(str(error)) from None
    if not problems:
        click.echo(
            f"as written: {totals.files:,} files, {totals.bins:,} bins, {totals.tokens:,} tokens"
        )
    return int(problems > 0)


@turnpack.command()
@click.argument("name", required=False)
def templates(name: str | None) -> None:
    """List the chat templates, or show how one writes a conversation."""
    from . import preview as show
    from .reading import rendered_pieces
    from .templates import get_template
    from .templates import templates as names

    console = _console()
    if name is None:
        width = max(map(len, names()))
        for known in names():
            template = get_template(known)
            click.echo(f"{known:{width}}  {template.summary}")
        return
    with _asked():
        template = get_template(name)
    rendered = template.render(show.SAMPLE if template.has_system else show.SAMPLE[1:])
    click.echo(f"{name}: {template.summary}\nsource: {template.source}")
    click.echo(
        f"BOS: {'written by the template' if template.writes_bos else 'left to the tokenizer'}"
    )
    system = "no default" if template.default_system is None else repr(template.default_system)
    click.echo(f"system message: {system if template.has_system else 'refused'}")
    click.echo(f"tools: {'written' if template.has_tools else 'refused'}")
    for variable, value in template.variables:
        click.echo(f"variable: {variable} = {value!r}")
    for warning in rendered.warnings:
        click.echo(f"warning: {warning}")
    stop = [part.text for part in rendered.segments if part.target][-1]
    click.echo(f"the last answer ends with: {stop}")
    show.show_legend(console)
    show.show_pieces(console, rendered_pieces(rendered))


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)


if __name__ == "__main__":
    sys.exit(main())
