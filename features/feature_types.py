"""Feature types by the name that a registry gives them; a new type is a file and a name in `AnyFeature`."""

from typing import Annotated, get_args

from pydantic import Field

from features.spec import Categorical, CategoricalList, FeatureSpec, Numeric

AnyFeature = Annotated[Categorical | CategoricalList | Numeric, Field(discriminator="type")]
FEATURE_TYPES: dict[str, type[FeatureSpec]] = {
    kind.model_fields["type"].default: kind for kind in get_args(get_args(AnyFeature)[0])
}
