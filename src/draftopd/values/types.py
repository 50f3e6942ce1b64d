"""Types of settings, for the signatures of whatever conf/ names: an annotation here is the only place of a bound."""

from typing import Annotated, Literal

from pydantic import Field

Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # Lightning takes no larger one
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
PartialShare = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(gt=0, le=1)]
OpenShare = Annotated[float, Field(gt=0, lt=1)]
BlockSize = Annotated[int, Field(ge=2, le=1024)]  # it counts the anchor
MOST_LAYERS = 256  # more than any model has
Depth = Annotated[int, Field(ge=1, le=MOST_LAYERS)]
Layers = Annotated[
    list[Natural], Field(min_length=1, description="a list of layers of the target, each a whole number of at least 0")
]
Name = Annotated[str, Field(min_length=1, description="text, and not empty")]
Url = Annotated[str, Field(pattern=r"^https?://[^\s/]+", description="an address as in http://localhost:8000")]
Urls = Annotated[
    list[Url], Field(min_length=1, description="a list of addresses of servers, as in [http://localhost:8000]")
]
Template = Annotated[str, Field(pattern=r"\{prompt\}", description="text with {prompt} in it")]
Metric = Annotated[str, Field(pattern=r"^val/.", description="a metric of validations, as in val/acceptance_length")]
SpecialToken = Annotated[
    str, Field(pattern=r"^<[^<> ]+>$", description="a token in angle brackets, which no text has: <empty_output>")
]
FloatType = Literal["float32", "bfloat16", "float16", "float64"]
