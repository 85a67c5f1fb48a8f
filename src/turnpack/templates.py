"""Templates: the protocol that all of them follow, and the named ones by their names.

Owns what the Encoder may ask of a template. The bytes of the named ones are in named_templates.py;
the rules that write them out are in declaration.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from .chat_template import ChatTemplate
from .declaration import TRAIN_ON, Template, Tools
from .named_templates import NAMED
from .nouns import Message, Rendered

if TYPE_CHECKING:
    from .tokenizers import Backend

__all__ = [
    "TRAIN_ON",
    "ChatTemplate",
    "Template",
    "TemplateProtocol",
    "Tools",
    "find_template",
    "get_template",
    "templates",
]


class TemplateProtocol(Protocol):
    """What the Encoder needs of a template, named or not."""

    @property
    def name(self) -> str:
        """What messages and reports call it."""
        ...

    @property
    def bos(self) -> str:
        """How it spells BOS; empty where it has none."""
        ...

    @property
    def writes_bos(self) -> bool:
        """Whether it writes BOS; otherwise the tokenizer puts its own in front, if it does."""
        ...

    @property
    def runs(self) -> str:
        """How a run of ordinary text is encoded: one of `RUNS`; see Template."""
        ...

    def bind(self, backend: Backend) -> TemplateProtocol:
        """The template as it is written for one tokenizer."""
        ...

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, object]] | None = None,
        *,
        for_inference: bool = False,
        train_on: str = "assistant",
    ) -> Rendered:
        """The conversation as segments."""
        ...

    def fingerprint(self) -> str:
        """Sha256 (hex) of all that decides the text."""
        ...


_BY_NAME = {template.name: template for template in NAMED}


def templates() -> list[str]:
    """The names of the templates, in the order in which they are declared.

    >>> "llama2" in templates()
    True
    """
    return list(_BY_NAME)


def find_template(template: TemplateProtocol | str, backend: Backend) -> TemplateProtocol:
    """A template as people say which: itself, a name, "auto" or the path of a Jinja file.

    "auto" is the tokenizer's own; a path ends with `.jinja`. The latter two are bound already.
    Raises ValueError where there is no such template.
    """
    if not isinstance(template, str):
        return template
    if template == "auto":
        return ChatTemplate.from_tokenizer(backend)
    if template.endswith(".jinja"):
        try:
            if Path(template).exists() and not Path(template).is_file():
                raise ValueError("not a file")  # a pipe would be waited for
            source = Path(template).read_text(encoding="utf-8")
            return ChatTemplate.for_backend(source, backend, name=Path(template).stem)
        except ValueError as error:
            raise ValueError(f"{template}: {error}") from None
    return get_template(template)


def get_template(
    name: str, *, bos: str | None = None, eos: str | None = None, **variables: str
) -> Template:
    """A named template. By itself it spells BOS and EOS as its original's tokenizer does.

    `bos`, `eos`: spell them otherwise, for any tokenizer; an empty BOS is not written.
    `variables`: other texts that the template lets one replace (llama3.1's `date_string`).

    >>> get_template("llama2").render([{"role": "user", "content": "Hi"}]).text
    '<s>[INST] Hi [/INST]'

    Raises ValueError for a name that no template has, TypeError for a variable that it has not.
    """
    try:
        template = _BY_NAME[name]
    except KeyError:
        known = ", ".join(_BY_NAME)
        raise ValueError(
            f"unknown template {name!r}; there are: {known}; auto (the tokenizer's own), and files "
            "that end with .jinja"
        ) from None
    own = dict(template.variables)
    for variable in variables:
        if variable not in own:
            raise TypeError(f"template {name} has no variable {variable!r}")
    spelled = tuple(key for key, value in (("bos", bos), ("eos", eos)) if value is not None)
    if not spelled and not variables:
        return template
    return dataclasses.replace(
        template,
        bos=template.bos if bos is None else bos,
        eos=template.eos if eos is None else eos,
        spelled=spelled,
        variables=tuple({**own, **variables}.items()),
    )
