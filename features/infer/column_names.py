"""Words in column names that suggest a code, a measure, a time or an outcome."""

import re

CODE_WORD = re.compile(
    r"(id|ids|uid|user|item|movie|product|sku|goods|ad|ads|adgroup|campaign|creative|advertiser|publisher|site|app|"
    r"device|session|ip|zip|zipcode|postal|code|city|country|region|province|state|category|cat|cate|brand|type|kind|"
    r"class|hash|key|gender|occupation|language|browser|os|model|position|pos|slot|weekday|hour|month|cluster|segment)"
    r"(id|ids)?"
)
MEASURE_WORD = re.compile(
    r"count|cnt|num|number|price|amount|cost|bid|score|rate|ratio|ctr|age|days|hours|minutes|seconds|duration|length|"
    r"size|total|sum|avg|mean|std|qty|quantity|affinity|width|height|distance|income|clicks|impressions|views"
)
# Grouped digits under such a name are not a number.
GROUPED_CODE_WORDS = frozenset({"phone", "tel", "telephone", "mobile", "fax", "postcode", "version", "isbn", "iban"})
TIME_WORDS = frozenset({"time", "timestamp", "ts", "date", "datetime", "day", "dt", "hour", "epoch", "created", "at"})
TIME_WORDS |= {"unixtime", "utc", "updated", "modified", "published", "posted", "seen", "logged", "registered", "clock"}

# Names of outcomes, the most certain first; then words that suggest one for a column of two values.
LABEL_NAMES = ("label", "click", "clicked", "is_click", "is_clicked", "clk", "target", "y", "conversion")
LABEL_NAMES += ("is_conversion", "converted", "purchased", "is_purchase", "is_trade", "is_buy", "liked", "is_like")
LABEL_NAMES += ("install",)
LABEL_WORDS = frozenset({"label", "click", "clicked", "target", "conversion", "converted", "purchase", "purchased"})
LABEL_WORDS |= {"liked", "installed", "outcome", "churn", "churned", "attrition", "attrited", "exited", "canceled"}
LABEL_WORDS |= {"cancelled", "cancellation", "default", "defaulted", "revenue", "subscribed", "subscription"}
LABEL_WORDS |= {"deposit", "survived", "response", "responded", "bought", "ordered", "returned", "fraud"}
LABEL_WORDS |= {"fraudulent", "spam", "approved", "approval", "accepted", "attributed", "booked", "income", "salary"}
LABEL_WORDS |= {"diagnosis", "diabetes", "stroke", "died", "deceased", "readmitted", "disease", "death"}
LABEL_WORDS |= {"satisfaction", "recommended", "tomorrow", "left", "leave"}
WEAK_LABEL_WORDS = frozenset({"status", "class", "result", "decision", "sentiment", "quality", "risk", "output"})
RATING_WORDS = frozenset({"rating", "ratings", "stars", "star", "score", "overall"})
# Words of features about the past, an average or a person, which may also have one of the words above.
NO_LABEL_WORDS = frozenset({"prev", "previous", "past", "last", "before", "prior", "history", "historical", "ever"})
NO_LABEL_WORDS |= {"repeated", "first", "avg", "average", "mean", "marital", "civil", "employment", "social"}
NO_LABEL_WORDS |= {"content", "credit", "imdb"}


def words_of(name: str) -> set[str]:
    """Lower-case words of a column name in snake or camel case: those of user_createdAt2 are user, created, at."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def is_code(name: str) -> bool:
    """True for names of identifiers and categories."""
    return not is_measure(name) and any(CODE_WORD.fullmatch(word) for word in words_of(name))


def is_measure(name: str) -> bool:
    """True for names of amounts."""
    return any(MEASURE_WORD.fullmatch(word) for word in words_of(name))
