"""The body of a request for images, and the errors of the API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import HTTPException
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from ditlab.errors import nearest
from ditlab.pipelines.sampling import FAMILIAR

MAX_PROMPT, MAX_LABEL = 10_000, 200  # characters
MAX_LIST = 1000  # prompts or labels
MAX_PARTIAL_IMAGES = 3  # as OpenAI's


class RequestError(HTTPException):
    """A request that cannot be served; becomes a response in the format of OpenAI's errors."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):  # fmt: skip
        super().__init__(status, message, dict(headers or {}))
        self.param, self.code = param, code

    def __str__(self) -> str:
        """The message."""
        return str(self.detail)


def _whole(value: object) -> object:
    """Refuse what would be rounded or converted: 1.5, "7", true."""
    if isinstance(value, bool | str) or (isinstance(value, float) and not value.is_integer()):
        raise PydanticCustomError("whole_number", "{value} is not a whole number", {"value": repr(value)[:50]})
    return value


def _texts(value: object) -> object:
    """Refuse what is no text, or too long, with a line that says so."""
    texts = value if isinstance(value, list) else [value]
    for each in texts if value is not None else ():
        if not isinstance(each, str):
            raise PydanticCustomError("text", "{value} is no text", {"value": repr(each)[:50]})
        if len(each) > MAX_PROMPT:
            sizes = {"length": f"{len(each):,}", "most": f"{MAX_PROMPT:,}"}
            raise PydanticCustomError("text_length", "a text of {length} characters is too long; at most {most}", sizes)
        if any("\ud800" <= character <= "\udfff" for character in each):
            raise PydanticCustomError("text_unicode", "half of a surrogate pair is no character; send valid Unicode")
    return value


Whole = Annotated[int, BeforeValidator(_whole)]
Text = Annotated[str, Field(max_length=MAX_PROMPT)]


class GenerationRequest(BaseModel):
    """The body that ``client.images.generate`` of ``openai`` sends; ditlab's own fields come from ``extra_body``."""

    model_config = ConfigDict(extra="forbid", strict=False, allow_inf_nan=False)

    prompt: Annotated[Text | Annotated[list[Text], Field(max_length=MAX_LIST)] | None, BeforeValidator(_texts)] = None
    """A text, or a list of texts, repeated in order over the images. Absent: the model's example prompts. A model of labels
    takes texts that name one class each, and comma-separated lists of classes; absent or empty: all classes in order."""
    negative_prompt: Annotated[Text | None, BeforeValidator(_texts)] = None
    """A text, or a class, to guide away from; has no effect at guidance 1."""
    labels: Annotated[list[int | Annotated[str, Field(max_length=MAX_LABEL)]], Field(max_length=MAX_LIST)] | None = None
    """Class names or indices as a list, for names that contain commas; replaces the prompt."""
    model: str | None = None
    """Name of a served model; the first one by default."""
    n: Annotated[Whole, Field(ge=1)] | None = None
    """Number of images; by default as many as prompts or labels in a list, or 1."""
    size: str | None = "auto"
    """``auto``, or the model's image size as width x height, such as ``28x28``."""
    seed: Annotated[Whole, Field(ge=0)] | None = None
    """Image k of a seed is that of ``ditlab sample --seed``; random if absent, and returned in the response."""
    guidance: Annotated[float, Field(ge=0, le=100)] | None = None
    """Guidance scale; 1 disables guidance."""
    guidance_low: Annotated[float, Field(ge=0, le=1)] | None = None
    """Lowest time t with guidance (t = 1 is noise)."""
    guidance_high: Annotated[float, Field(ge=0, le=1)] | None = None
    """Highest time t with guidance."""
    steps: Annotated[Whole, Field(ge=1)] | None = None
    """Sampling steps."""
    sampler: str | None = None
    """ddpm, ddim, euler, heun or dpm-solver."""
    response_format: Literal["b64_json"] | None = "b64_json"
    """Images are returned as base64-encoded files; URLs are not supported."""
    output_format: Literal["png", "webp", "jpeg"] | None = "png"
    """File format of the images."""
    output_compression: Annotated[Whole, Field(ge=0, le=100)] | None = None
    """Quality of a webp or jpeg file, 100 by default; a webp of 100 is lossless, as png always is."""
    stream: bool | None = False
    """Return server-sent events; for one image."""
    partial_images: Annotated[Whole, Field(ge=0, le=MAX_PARTIAL_IMAGES)] | None = None
    """Number of events with an image that is not finished, the predicted x0; needs ``stream``."""
    background: Literal["auto", "opaque"] | None = None
    """No effect, as that of the next ones: OpenAI's clients send them."""
    moderation: str | None = None
    quality: str | None = None
    style: str | None = None
    safety_identifier: str | None = None
    user: str | None = None

    @property
    def prompts(self) -> list[str] | None:
        """The prompts as a list; None if there is none."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt or None

    @property
    def count(self) -> int:
        """The number of images."""
        return self.n or len(self.labels or self.prompts or ()) or 1


def explain(errors: Sequence[Any]) -> tuple[str, str | None]:
    """The message and the field of pydantic's first error on a body."""
    first = errors[0]
    path = ".".join(str(part)[:100] for part in first["loc"] if part != "body")
    param = path.encode(errors="backslashreplace").decode() or None  # halves of surrogate pairs cannot be sent
    if first["type"] == "json_invalid":
        return "the request body is not valid JSON", None
    if first["type"] == "extra_forbidden":
        name, known = str(param), [*GenerationRequest.model_fields]
        ours = FAMILIAR.get(name, name)  # of other libraries; of the pipeline
        ours = "n" if ours == "count" else ours
        hint = f"did you mean {ours!r}?" if ours in known else nearest(name, known)
        return f"unknown field {name!r}; {hint}", param
    return f"{param or 'body'}: {first['msg']}", param
