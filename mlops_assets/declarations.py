"""What a user declares: sources, feature views, labels, models. Frozen values; nothing here computes.

A declaration that can be judged alone is judged when it is made; what needs the other declarations
(an unknown feature, two models of one name) is judged by `mlops_assets.catalog` when definitions
load. Either way the error names the declaration, the field, what was given, what exists, and the fix.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args

from mlops_assets.fields import CONFIDENCE, Field, String, UnixTimestamp

if TYPE_CHECKING:
    import dagster as dg
    import polars as pl

    from mlops_assets.trainers import Trainer
    from resources.hardware import Accelerator

EVENT_TIMESTAMP = "event_timestamp"
KNOWN_AT = "label_known_at"
NUMBERS = ("Float64", "Int64")
PREDICTION = "prediction"
OUTPUT_TYPES = ("Bool", "Int64", "Float64", "String")
# What an answer, its line in the log and a batch score have already.
ANSWER = (
    *("model", "request_id", PREDICTION, CONFIDENCE, "release", "version", "variant", "fallbacks", "outputs"),
    *("at", "logged_at", "writer", "seq", "latency_ms", "event_times", "instead_of"),
)
CLUSTERS = ("ray", "kubernetes")  # they hide every GPU from whoever asks for none
NAME = re.compile(r"[a-z][a-z0-9_]*")
Task = Literal["classification", "multiclass", "regression"]
WithoutStore = Literal["refuse", "fall back"]
Trained = Literal["on cause", "at each cutoff"]
Engine = Literal["polars", "spark"]
TOLERATION = ("key", "operator", "value", "effect")
Prune = Literal[False, "median", "hyperband"]
Over = Literal["auto", "processes", "ray"]


class DeclarationError(ValueError):
    """A declaration cannot mean anything; raised when definitions load."""

    @classmethod
    def of(cls, declaration: str, field_name: str, given: object, exists: object, fix: str) -> Self:
        return cls(f"{declaration}: {field_name} is {given!r} (allowed: {exists}). {fix}")


def _named(kind: str, name: str) -> None:
    if not NAME.fullmatch(name):
        raise DeclarationError.of(
            f"{kind} {name!r}", "name", name, "lower case letters, digits and _, a letter first", "Rename it."
        )


def _sized(title: str, schema: Mapping[str, Field]) -> None:
    """An array says how long it is, and nothing else does."""
    for name, column in schema.items():
        if (column.dtype == "Float64Array") != (column.size is not None and column.size >= 1):
            raise DeclarationError.of(
                title, f"schema of {name!r}, size", column.size, "1 or more for an array, none else", "State it."
            )


def _freeze(declaration: object, *names: str) -> None:
    """Lists as tuples, so that equal words make equal declarations."""
    for name in names:
        object.__setattr__(declaration, name, tuple(getattr(declaration, name)))


def _team_of(function: Callable[..., Any]) -> str:
    """The team is the folder: `feature_assets/<team>/file.py`."""
    parts = function.__module__.split(".")
    return parts[1] if len(parts) > 2 and parts[0] in ("feature_assets", "model_assets") else parts[0]


@dataclass(frozen=True)
class Entity:
    """A thing that features describe, found by one join key (a column of every table about it)."""

    name: str
    join_key: str
    dtype: Field = String
    description: str = ""

    def __post_init__(self) -> None:
        _named("Entity", self.name)

    @property
    def column(self) -> Field:
        """The join key as a column; its meaning is the entity's, unless it has one of its own."""
        return self.dtype if self.dtype.description else replace(self.dtype, description=self.description)


class _Computed:
    """What every declared function has: a kind, a team, a name, and inputs that its parameters name."""

    kind: ClassVar[str]
    name: str
    team: str
    compute: Callable[..., Any]

    @property
    def id(self) -> str:
        """`<team>/<name>`, the name used in references, errors and paths."""
        return f"{self.team}/{self.name}"

    @property
    def title(self) -> str:
        return f"{self.kind} '{self.id}'"

    @property
    def inputs(self) -> tuple[str, ...]:
        """What it reads (a table: tables of the same team), named by the parameters of its function."""
        return tuple(inspect.signature(self.compute).parameters)


@dataclass(frozen=True)
class _Table(_Computed):
    """What every published table has: a team and a name, a schema, partitions, and how it is computed.

    Its function takes and returns frames of its `engine`: Polars', or Spark's for tables beyond one machine.
    """

    name: str
    team: str
    schema: Mapping[str, Field]
    compute: Callable[..., pl.LazyFrame]
    partitions: dg.PartitionsDefinition[Any] | None = None
    lookback: timedelta = timedelta(0)
    description: str = ""
    owners: tuple[str, ...] = ()
    code_version: str = "1"
    engine: Engine = "polars"

    def __post_init__(self) -> None:
        _named(self.kind, self.name)
        if self.engine not in get_args(Engine):
            known = " or ".join(get_args(Engine))
            raise DeclarationError.of(self.title, "engine", self.engine, known, "Choose one of them.")
        if not self.schema:
            raise DeclarationError.of(self.title, "schema", {}, "at least one column", "Name its columns and types.")
        _sized(self.title, self.schema)
        if self.lookback < timedelta(0):
            raise DeclarationError.of(
                self.title, "lookback", self.lookback, "zero or more", "Give a positive duration."
            )

    def __call__(self, *frames: pl.LazyFrame) -> pl.LazyFrame:
        """The pure function, so that it is tested by calling it."""
        return self.compute(*frames)


@dataclass(frozen=True)
class Source(_Table):
    """A raw table, read in place from where it comes. `key` columns and time are unique together.

    Its function takes no tables; one with a parameter `window` (a pair of UTC datetimes, start
    inclusive, end exclusive; None when unpartitioned) is given the time range that is asked for.
    `stream` names the topic whose events are rows of this table too, as they happen (`mlops ingest`).
    """

    kind: ClassVar[str] = "source"

    key: tuple[str, ...] = ()
    event_timestamp: str | None = None
    stream: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stream is not None and (self.event_timestamp is None or self.partitions is None):
            raise DeclarationError.of(
                self.title,
                "stream",
                self.stream,
                "a topic, for a source with event_timestamp and partitions",
                "An event is placed by its time: declare both, or leave the stream out.",
            )


@dataclass(frozen=True)
class MeanOverEntities:
    """What an entity without history is taken for: the average of all rows of the last `window`.

    Numbers and the elements of arrays by their mean, everything else by its most frequent value.
    """

    window: timedelta = timedelta(days=90)


@dataclass(frozen=True)
class Popularity:
    """The average, weighted by `by`, a feature that says how much an entity is used: what a random use would meet."""

    by: str
    window: timedelta = timedelta(days=90)


@dataclass(frozen=True)
class Constant:
    """The same values always; a feature that is not named is null."""

    values: Mapping[str, Any]


ColdStart = MeanOverEntities | Popularity | Constant


@dataclass(frozen=True)
class FeatureView(_Table):
    """Features of entities over time: one row per entity key and `event_timestamp`.

    A row may use only what was known at its `event_timestamp`. A reader at time t sees the newest row
    with `t - ttl <= event_timestamp <= t`; without a ttl a row holds until a newer one comes.
    `lookback` is how far before a partition its function needs its inputs (trailing windows).
    `cold_start` says what a reader gets for keys that have no such row; without it, nulls. Leave it out where
    a missing row means something (a time series that stopped). `sparse` views have rows in some partitions only
    (every Monday, say): an empty one is then no reason to warn.
    """

    kind: ClassVar[str] = "feature view"

    entities: tuple[Entity, ...] = ()
    ttl: timedelta | None = None
    online: bool = True
    cold_start: ColdStart | None = None
    sparse: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._validate_cold_start()
        if self.ttl is not None and self.ttl <= timedelta(0):
            raise DeclarationError.of(
                self.title, "ttl", self.ttl, "a positive duration or None", "Leave it out for no limit."
            )
        if clash := sorted({EVENT_TIMESTAMP, *self.join_keys} & set(self.schema)):
            raise DeclarationError.of(
                self.title,
                "schema",
                clash,
                "features only",
                "Keys come from entities=, the time column is added by itself.",
            )

    def _validate_cold_start(self) -> None:
        named: Sequence[str] = ()
        if isinstance(self.cold_start, Popularity):
            named = [self.cold_start.by]
        elif isinstance(self.cold_start, Constant):
            named = list(self.cold_start.values)
        if unknown := [name for name in named if name not in self.schema]:
            raise DeclarationError.of(
                self.title, "cold_start", unknown, ", ".join(self.schema), "Name features of the view."
            )
        if isinstance(self.cold_start, MeanOverEntities | Popularity) and (
            self.cold_start.window <= timedelta(0) or self.cold_start.window % timedelta(days=1)
        ):
            raise DeclarationError.of(
                self.title, "cold_start.window", self.cold_start.window, "whole days, 1 or more", "Stand-ins are daily."
            )
        if isinstance(self.cold_start, Popularity) and self.schema[self.cold_start.by].dtype not in NUMBERS:
            raise DeclarationError.of(
                self.title, "cold_start.by", self.cold_start.by, "a number", "Weigh by a count or an amount."
            )

    @cached_property
    def stand_in(self) -> FeatureView | None:
        """The view of what stands in for missing rows; None where nothing does, or a constant."""
        from mlops_assets.cold_start import cold_start_view

        return cold_start_view(self)

    @property
    def join_keys(self) -> tuple[str, ...]:
        return tuple(entity.join_key for entity in self.entities)

    @property
    def columns(self) -> dict[str, Field]:
        """Every published column: join keys, event time, features."""
        keys = {entity.join_key: entity.column for entity in self.entities}
        return {**keys, EVENT_TIMESTAMP: UnixTimestamp("When the row became true and known"), **self.schema}

    def __getitem__(self, features: Sequence[str]) -> StoredSelection:
        return StoredSelection(self, (features,) if isinstance(features, str) else tuple(features))

    @property
    def selection(self) -> StoredSelection:
        return self[tuple(self.schema)]


@dataclass(frozen=True)
class FeatureSelection:
    """Some features of one view, in the order a model reads them."""

    view: FeatureView | OnDemandView
    features: tuple[str, ...]

    def __post_init__(self) -> None:
        if unknown := [name for name in self.features if name not in self.view.schema]:
            raise DeclarationError.of(
                self.view.title,
                "features",
                unknown,
                ", ".join(self.view.schema),
                "Select features that the view declares.",
            )

    @property
    def selection(self) -> FeatureSelection:
        return self


@dataclass(frozen=True)
class StoredSelection(FeatureSelection):
    """A selection of a view that is kept in the stores."""

    view: FeatureView


@dataclass(frozen=True)
class ComputedSelection(FeatureSelection):
    """A selection of a view that is computed when asked for."""

    view: OnDemandView


@dataclass(frozen=True)
class OnDemandView(_Computed):
    """Features computed when they are asked for, from stored features and from what only the caller knows.

    The function's parameters name its inputs: features of the views in `reads`, request features of the label
    tables in `reads`, or `event_timestamp`, the moment that is asked about. It is given Polars expressions and
    returns one (or a mapping, one for each column of `schema`): the same function for a million rows offline and
    for one online. So it must make each row by itself, and call no Python.
    """

    name: str
    team: str
    schema: Mapping[str, Field]
    compute: Callable[..., pl.Expr | Mapping[str, pl.Expr]]
    reads: tuple[FeatureSelection | Labels, ...]
    description: str = ""
    owners: tuple[str, ...] = ()
    code_version: str = "1"

    kind: ClassVar[str] = "on-demand view"

    def __post_init__(self) -> None:
        _named(self.kind, self.name)
        _sized(self.title, self.schema)
        if not self.schema or "Float64Array" in {column.dtype for column in self.schema.values()}:
            raise DeclarationError.of(
                self.title, "schema", dict(self.schema), "at least one column, no arrays", "Name its columns and types."
            )
        if computed := [item.view.id for item in self.reads if isinstance(item, ComputedSelection)]:
            raise DeclarationError.of(
                self.title, "reads", computed, "feature views and label tables", "Read what that view reads."
            )
        known = self._known
        if unknown := [name for name in self.inputs if name not in known]:
            raise DeclarationError.of(
                self.title, "parameter", unknown, ", ".join(known), "Name inputs that `reads` has, or read more."
            )
        # Where a column of the result has the name of an input, readers disagree about which one it is.
        if shadowed := sorted(set(self.schema) & set(known)):
            raise DeclarationError.of(self.title, "schema", shadowed, "names that no input has", "Rename the feature.")
        self._validate_expressions()

    def _validate_expressions(self) -> None:
        from mlops_assets.serving.transform import NotRowByRowError, refuse_unless_row_by_row

        try:
            for name, expression in self.expressions().items():
                refuse_unless_row_by_row(name, expression, self.input_fields)
        except NotRowByRowError as error:
            raise DeclarationError.of(
                self.title, "function", str(error), "expressions on each row", error.fix
            ) from error

    @property
    def _known(self) -> dict[str, Field]:
        """Every input that `reads` offers, by name; its declarations share no names."""
        found: dict[str, Field] = {EVENT_TIMESTAMP: UnixTimestamp("The moment that is asked about")}
        for read in self.reads:
            offered = read.request if isinstance(read, Labels) else {n: read.view.schema[n] for n in read.features}
            if twice := sorted(set(offered) & set(found)):
                raise DeclarationError.of(self.title, "reads", twice, "distinct names", "Select with view[[...]].")
            found.update(offered)
        return found

    @property
    def input_fields(self) -> dict[str, Field]:
        return {name: self._known[name] for name in self.inputs}

    @property
    def needs(self) -> tuple[FeatureSelection, ...]:
        """The stored features among the inputs, by view."""
        named = [
            read.view[tuple(name for name in read.features if name in self.inputs)]
            for read in self.reads
            if isinstance(read, FeatureSelection)
        ]
        return tuple(item for item in named if item.features)

    @property
    def asks(self) -> tuple[str, ...]:
        """The request features among the inputs."""
        offered = {name for read in self.reads if isinstance(read, Labels) for name in read.request}
        return tuple(name for name in self.inputs if name in offered)

    def expressions(self) -> dict[str, pl.Expr]:
        """One expression per column of the schema, over columns named as the inputs; cast to its declared type."""
        return _expressions(self.title, self.compute, self.inputs, self.schema)

    def __getitem__(self, features: Sequence[str]) -> ComputedSelection:
        return ComputedSelection(self, (features,) if isinstance(features, str) else tuple(features))

    @property
    def selection(self) -> ComputedSelection:
        return self[tuple(self.schema)]


@dataclass(frozen=True)
class PostProcessing(_Computed):
    """What an answer says beside the prediction: columns made from it and from the model's inputs, row by row.

    The function's parameters name what it reads: `prediction` or inputs of the model. As that of an on-demand view
    it is given Polars expressions, and returns one (or a mapping, one for each column of `schema`).
    """

    name: str
    team: str
    schema: Mapping[str, Field]
    compute: Callable[..., pl.Expr | Mapping[str, pl.Expr]]
    description: str = ""
    owners: tuple[str, ...] = ()

    kind: ClassVar[str] = "post-processing"

    def __post_init__(self) -> None:
        _named(self.kind, self.name)
        types = {column.dtype for column in self.schema.values()}
        if not self.schema or types - set(OUTPUT_TYPES):
            allowed = f"at least one column of {', '.join(OUTPUT_TYPES)}"
            raise DeclarationError.of(self.title, "schema", dict(self.schema), allowed, "Name its columns and types.")

    def expressions(self) -> dict[str, pl.Expr]:
        """One expression per column of the schema, of its declared type; a value that has no place in it is null.

        Strictness would fail a request of many rows for what one of them has.
        """
        return _expressions(self.title, self.compute, self.inputs, self.schema, strict=False)

    def reads(self, model: ModelPipeline) -> dict[str, Field]:
        """What it reads of a model, by name. Raises DeclarationError where it does not fit the model."""
        from mlops_assets.serving.transform import NotRowByRowError, refuse_unless_row_by_row

        known = {PREDICTION: Field("Float64", "What the model predicts"), **model.input_fields}
        if unknown := [name for name in self.inputs if name not in known]:
            raise DeclarationError.of(self.title, "parameter", unknown, ", ".join(known), "Name what the model has.")
        labels = {model.labels.key, *model.labels.columns, *model.labels.join_keys}
        if taken := sorted(set(self.schema) & {*ANSWER, *known, *labels}):
            raise DeclarationError.of(
                self.title, "schema", taken, "names that neither an answer, an input nor a label has", "Rename it."
            )
        fields = {name: known[name] for name in self.inputs}
        try:
            for name, expression in self.expressions().items():
                refuse_unless_row_by_row(name, expression, fields)
        except NotRowByRowError as error:
            raise DeclarationError.of(
                self.title, "function", str(error), "expressions on each row", error.fix
            ) from error
        return fields


@dataclass(frozen=True)
class Labels(_Table):
    """The spine: one row per event to predict, with what is known when it is asked, and the truth later.

    Columns: `key` (unique id of the event), the entities' join keys, `event_timestamp` (when the
    prediction is wanted), `label_known_at`, the `request` features (given by the caller when asking),
    and the targets. `schema` holds the targets.
    """

    kind: ClassVar[str] = "labels"

    key: str = "event_id"
    entities: tuple[Entity, ...] = ()
    request: Mapping[str, Field] = field(default_factory=dict)

    @property
    def join_keys(self) -> tuple[str, ...]:
        return tuple(entity.join_key for entity in self.entities)

    @property
    def columns(self) -> dict[str, Field]:
        return {
            self.key: String("Unique id of the event"),
            **{entity.join_key: entity.column for entity in self.entities},
            EVENT_TIMESTAMP: UnixTimestamp("When the prediction is wanted"),
            KNOWN_AT: UnixTimestamp("When the label became known"),
            **self.request,
            **self.schema,
        }


def _expressions(
    title: str, compute: Callable[..., Any], inputs: Sequence[str], schema: Mapping[str, Field], *, strict: bool = True
) -> dict[str, pl.Expr]:
    """What a function of columns makes: one expression for each column of its schema, of its type, by its name."""
    import polars as pl

    computed = compute(**{name: pl.col(name) for name in inputs})
    made = computed if isinstance(computed, Mapping) else dict.fromkeys([*schema][:1], computed)
    if set(made) != set(schema):
        raise DeclarationError.of(
            title, "function", sorted(made), ", ".join(schema), "Return one expression for each column."
        )
    return {name: made[name].cast(field.polars, strict=strict).alias(name) for name, field in schema.items()}


def _table(kind: type[Any], options: dict[str, Any]) -> Callable[[Callable[..., Any]], Any]:
    def declare(function: Callable[..., Any]) -> Any:
        options["team"] = options["team"] or _team_of(function)
        return kind(
            name=options.pop("name", function.__name__),
            compute=function,
            description=inspect.getdoc(function) or "",
            **options,
        )

    return declare


def source(
    *,
    team: str | None = None,
    schema: Mapping[str, Field],
    key: Sequence[str],
    event_timestamp: str | None = None,
    partitions: dg.PartitionsDefinition[Any] | None = None,
    stream: str | None = None,
    owners: Sequence[str] = (),
    code_version: str = "1",
    engine: Engine = "polars",
) -> Callable[[Callable[..., Any]], Source]:
    """Declare the decorated function as a raw source; its name is the table's, its docstring the description."""
    return _table(Source, {**locals(), "key": tuple(key), "owners": tuple(owners)})


def feature_view(
    *,
    team: str | None = None,
    entities: Sequence[Entity],
    schema: Mapping[str, Field],
    ttl: timedelta | None = None,
    partitions: dg.PartitionsDefinition[Any] | None = None,
    lookback: timedelta = timedelta(0),
    online: bool = True,
    cold_start: ColdStart | None = None,
    sparse: bool = False,
    owners: Sequence[str] = (),
    code_version: str = "1",
    engine: Engine = "polars",
) -> Callable[[Callable[..., Any]], FeatureView]:
    """Declare the decorated function as a feature view; its parameters name the tables it reads."""
    return _table(FeatureView, {**locals(), "entities": tuple(entities), "owners": tuple(owners)})


def on_demand(
    *,
    team: str | None = None,
    reads: Sequence[FeatureView | FeatureSelection | Labels],
    schema: Mapping[str, Field],
    owners: Sequence[str] = (),
    code_version: str = "1",
) -> Callable[[Callable[..., Any]], OnDemandView]:
    """Declare the decorated function as features computed on demand; its parameters name the inputs it reads."""
    options = {**locals(), "owners": tuple(owners)}
    read = tuple(item if isinstance(item, Labels) else item.selection for item in reads)
    return _table(OnDemandView, {**options, "reads": read})


def postprocess(
    *,
    team: str | None = None,
    schema: Mapping[str, Field],
    owners: Sequence[str] = (),
) -> Callable[[Callable[..., Any]], PostProcessing]:
    """Declare the decorated function as what answers say beside the prediction; its parameters name what it reads."""
    return _table(PostProcessing, {**locals(), "owners": tuple(owners)})


def labels(
    *,
    team: str | None = None,
    key: str,
    entities: Sequence[Entity],
    targets: Mapping[str, Field],
    request: Mapping[str, Field] | None = None,
    partitions: dg.PartitionsDefinition[Any] | None = None,
    lookback: timedelta = timedelta(0),
    owners: Sequence[str] = (),
    code_version: str = "1",
    engine: Engine = "polars",
) -> Callable[[Callable[..., Any]], Labels]:
    """Declare the decorated function as a spine of labelled events; its parameters name the tables it reads."""
    options = {**locals(), "entities": tuple(entities), "owners": tuple(owners), "request": dict(request or {})}
    return _table(Labels, {"schema": options.pop("targets"), **options})


@dataclass(frozen=True)
class IntRange:
    """Whole numbers from `low` to `high`, both included."""

    low: int
    high: int
    log: bool = False


@dataclass(frozen=True)
class FloatRange:
    """Real numbers from `low` to `high`; `log` searches orders of magnitude evenly."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class TimeSplit:
    """The last `holdout` before the cutoff judges the model; the `validation` before it guides the search.

    `window` bounds how far back training rows go; None takes all there is.
    """

    holdout: timedelta = timedelta(days=14)
    validation: timedelta = timedelta(days=14)
    window: timedelta | None = None

    def __post_init__(self) -> None:
        for name in ("holdout", "validation"):
            if getattr(self, name) <= timedelta(0):
                raise DeclarationError.of("TimeSplit", name, getattr(self, name), "a positive duration", "Give days.")
        if self.window is not None and self.window <= self.holdout + self.validation:
            raise DeclarationError.of(
                "TimeSplit", "window", self.window, "more than holdout + validation", "Leave rows to train on."
            )


@dataclass(frozen=True)
class Search:
    """Hyperparameter search: `trials` draws from `space` (ranges, or a list of choices), seeded.

    `workers` try at once, each with its share of the cores, `over` tasks of Ray where the training runs on Ray and
    processes of the machine elsewhere ("auto"). More of them draw other trials than one does, and the same each time.
    A trial that is behind those before it is given up (`prune`) by their "median", or as "hyperband" deals with it.
    """

    trials: int = 20
    space: Mapping[str, IntRange | FloatRange | Sequence[Any]] = field(default_factory=dict)
    seed: int = 7
    workers: int = 1
    prune: Prune = False
    over: Over = "auto"

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise DeclarationError.of("Search", "trials", self.trials, "1 or more", "Use 1 for the trainer's defaults.")
        if self.workers < 1:
            raise DeclarationError.of("Search", "workers", self.workers, "1 or more", "Use 1 for one after the other.")
        for name, known in (("prune", get_args(Prune)), ("over", get_args(Over))):
            if (given := getattr(self, name)) not in known:
                raise DeclarationError.of("Search", name, given, ", ".join(map(str, known)), "Name one of these.")


@dataclass(frozen=True)
class Gate:
    """What a candidate must show on the holdout before it may become champion.

    `at_least` (or `at_most`, for errors) is the floor of `metric`; `beats_champion_by` the margin over
    the champion on the same rows; `slices` are columns whose every group of at least
    `slice_min_rows` rows must stay within `slice_tolerance` of the whole; `latency_ms` bounds the
    median time of a one-row prediction.
    """

    metric: str
    at_least: float | None = None
    at_most: float | None = None
    beats_champion_by: float | None = 0.0
    slices: Sequence[str] = ()
    slice_tolerance: float = 0.15
    slice_min_rows: int = 200
    latency_ms: float = 50.0

    def __post_init__(self) -> None:
        _freeze(self, "slices")
        if (self.at_least is None) == (self.at_most is None):
            raise DeclarationError.of(
                "Gate",
                "at_least/at_most",
                (self.at_least, self.at_most),
                "exactly one",
                "State the floor of the metric.",
            )


@dataclass(frozen=True)
class Parity:
    """How alike the features online and offline must be before a Bento may be released.

    `rows` requests, logged or sampled, are replayed offline; numbers may differ by `tolerance` (relative, absolute
    below 1); `at_most` is the largest share (0 to 1) of compared values that may differ.
    """

    rows: int = 200
    tolerance: float = 1e-6
    at_most: float = 0.0

    def __post_init__(self) -> None:
        if self.rows < 1 or self.tolerance < 0 or not 0 <= self.at_most < 1:
            limits = "rows from 1, tolerance from 0, at_most in [0, 1)"
            raise DeclarationError.of("Parity", "a number", self, limits, "Give one within its limits.")


@dataclass(frozen=True)
class Serve:
    """How a new champion takes over, and what an answer may cost.

    `canary` is the percent of traffic at each step, ascending to 100. During a canary the endpoint itself goes back
    to the release before when, after `min_requests` of the challenger, more than `max_error_share` (0 to 1) of them
    failed or its 95th percentile of latency is over `max_latency_ratio` times the champion's. `without_store` says
    what an endpoint does while its online store is away: "refuse" answers 503, "fall back" uses the views' cold
    starts or nulls, marked. A request that waited longer than `deadline` is not answered any more.

    At the end of each step champion and challenger are compared on the same requests. A challenger whose metric is
    surely lower goes back, by more than the monitor's `metric_drop`. Until enough labels tell, a step waits `hold`, by
    the time that is asked about; then it goes on, unless no labels came and more than `max_changed` (0 to 1) of the
    requests are decided otherwise. By default nothing waits for labels, and those that are known count.
    """

    canary: Sequence[int] = (10, 50, 100)
    max_error_share: float = 0.01
    max_latency_ratio: float = 3.0
    min_requests: int = 50
    hold: timedelta = timedelta(0)
    max_changed: float = 0.5
    without_store: WithoutStore = "refuse"
    deadline: timedelta = timedelta(seconds=10)

    def __post_init__(self) -> None:
        _freeze(self, "canary")
        steps = list(self.canary)
        if not steps or steps != sorted(set(steps)) or steps[-1] != 100 or steps[0] < 1:
            raise DeclarationError.of(
                "Serve", "canary", steps, "percents ascending to 100, e.g. [10, 50, 100]", "Sort them and end with 100."
            )
        if not 0 <= self.max_error_share < 1 or self.max_latency_ratio < 1 or self.min_requests < 1:
            limits = "max_error_share in [0, 1), max_latency_ratio and min_requests from 1"
            raise DeclarationError.of("Serve", "a bound", self, limits, "Give one within its limits.")
        if self.hold < timedelta(0) or not 0 < self.max_changed <= 1:
            limits = "hold from 0, max_changed in (0, 1]"
            raise DeclarationError.of("Serve", "a bound", self, limits, "Give one within its limits.")
        if self.without_store not in get_args(WithoutStore):
            raise DeclarationError.of(
                "Serve", "without_store", self.without_store, " or ".join(get_args(WithoutStore)), "Choose one."
            )
        if self.deadline <= timedelta(0):
            raise DeclarationError.of("Serve", "deadline", self.deadline, "a positive duration", "Give seconds.")


@dataclass(frozen=True)
class Monitor:
    """When to speak up, and how often a model may be retrained because of it.

    `psi` is the limit of the population stability index of a column, `drifted_share` the share of
    columns over it that makes the whole dataset drifted; `metric_drop` how far the live metric may
    fall below the holdout's; `fallback_share` the share of a day's answers for which a view may lack a
    usable row; reports look back over `window`, and say nothing on fewer than `min_rows` rows; `cooldown`
    is the least time between two retrainings. A label that is not known `maturity` after its event never will be.
    The data pipeline is at fault, not the world, when the share of nulls of an input rose by more than
    `null_share_rise` (0 to 1), when more than `invalid_share` of an input's values are out of their declared bounds or
    categories that training never saw, when more answers than `fallback_share` found no usable row, or when a day had
    `volume_change` times as many answers as the days before, or as few: then people are alerted, and nothing is
    retrained.
    """

    psi: float = 0.2
    drifted_share: float = 0.3
    metric_drop: float = 0.03
    fallback_share: float = 0.5
    window: timedelta = timedelta(days=7)
    min_rows: int = 500
    cooldown: timedelta = timedelta(days=7)
    maturity: timedelta = timedelta(days=2)
    null_share_rise: float = 0.1
    invalid_share: float = 0.05
    volume_change: float = 4.0

    def __post_init__(self) -> None:
        for name in ("drifted_share", "fallback_share", "null_share_rise", "invalid_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise DeclarationError.of("Monitor", name, getattr(self, name), "a share from 0 to 1", "Give a share.")
        for name in ("window", "maturity"):
            if getattr(self, name) <= timedelta(0):
                raise DeclarationError.of("Monitor", name, getattr(self, name), "a positive duration", "Give days.")
        if self.psi <= 0 or self.metric_drop < 0 or self.min_rows < 1 or self.volume_change <= 1:
            limits = "psi over 0, metric_drop from 0, min_rows from 1, volume_change over 1"
            raise DeclarationError.of("Monitor", "a limit", self, limits, "Give one within its limits.")


@dataclass(frozen=True)
class Checkpoint:
    """How much of a fit may be lost when its process is killed: `every` so much time, or so many `rounds` or epochs.

    Whichever comes first; None of either is never. The model is the same with checkpoints and without.
    """

    every: timedelta | None = timedelta(minutes=10)
    rounds: int | None = None

    def __post_init__(self) -> None:
        if self.every is not None and self.every <= timedelta(0):
            raise DeclarationError.of("Checkpoint", "every", self.every, "a positive duration or None", "Give minutes.")
        if self.rounds is not None and self.rounds < 1:
            raise DeclarationError.of("Checkpoint", "rounds", self.rounds, "1 or more, or None", "Leave it out.")


@dataclass(frozen=True)
class Approval:
    """A person's word before a candidate that passed its gate becomes champion; it waits for `expires`, no longer."""

    expires: timedelta = timedelta(days=7)

    def __post_init__(self) -> None:
        if self.expires <= timedelta(0):
            raise DeclarationError.of("Approval", "expires", self.expires, "a positive duration", "Give days.")


@dataclass(frozen=True)
class Resources:
    """What a training needs of a machine, and which machine in a cluster; None leaves it to the cluster.

    `memory_gb` is in GiB. A `spot` machine may be taken away at any time: the training is begun again on another up to
    `retries` times, from its last checkpoint. Work that found no machine within `start_within` has failed. `image` and
    `service_account` are those of the run where empty. `machines` is how many such ones a cluster has that is made for
    the training (KubeRay's): more than one is for a trainer, or a search, that spreads over them.
    """

    cpus: float | None = None
    memory_gb: float | None = None
    gpus: int = 0
    machines: int = 1
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, str]] = ()
    spot: bool = False
    retries: int = 0
    start_within: timedelta = timedelta(minutes=10)
    service_account: str = ""
    image: str = ""

    def __post_init__(self) -> None:
        _freeze(self, "tolerations")
        for name in ("cpus", "memory_gb"):
            given = getattr(self, name)
            if given is not None and given <= 0:
                raise DeclarationError.of("Resources", name, given, "more than 0, or None", "Leave it out.")
        for name in ("gpus", "retries"):
            if getattr(self, name) < 0:
                raise DeclarationError.of("Resources", name, getattr(self, name), "0 or more", "Leave it out.")
        if self.machines < 1:
            raise DeclarationError.of("Resources", "machines", self.machines, "1 or more", "Leave it out.")
        for name in {name for one in self.tolerations for name in one} - set(TOLERATION):
            raise DeclarationError.of("Resources", "tolerations", name, ", ".join(TOLERATION), "Use Kubernetes' words.")
        if self.start_within <= timedelta(0):
            raise DeclarationError.of(
                "Resources", "start_within", self.start_within, "a positive duration", "Give minutes."
            )

    @property
    def document(self) -> dict[str, Any]:
        """As JSON, durations in seconds: what a kind of compute reads."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        told = {"tolerations": [dict(one) for one in self.tolerations], "node_selector": dict(self.node_selector)}
        seconds = {"start_within_seconds": plain.pop("start_within").total_seconds()}
        return plain | told | seconds


@dataclass(frozen=True)
class ModelPipeline:
    """One model's whole life. See the README for an example; `mlops new model` writes one.

    `label` is a target of `labels`; `cutoffs` partitions training by the moment the world is known up
    to; rows of the training set have `event_timestamp < cutoff` and `label_known_at <= cutoff`. It is `trained` when
    reports give a cause or somebody asks, or at each cutoff as well, whether there is a cause or not.

    It is trained by `compute` (a file of `resources/compute`; empty for the environment's) on an `accelerator` that
    its trainer can use, "auto" for the best that is there. Neither changes what is declared besides.
    """

    name: str
    team: str
    labels: Labels
    label: str
    features: Sequence[FeatureView | OnDemandView | FeatureSelection]
    trainer: Trainer
    cutoffs: dg.TimeWindowPartitionsDefinition
    gate: Gate
    split: TimeSplit = TimeSplit()
    search: Search = Search(trials=1)
    serve: Serve = Serve()
    monitor: Monitor = Monitor()
    parity: Parity = Parity()
    approval: Approval | None = None
    checkpoint: Checkpoint | None = Checkpoint()
    trained: Trained = "on cause"
    compute: str = ""
    accelerator: Accelerator = "auto"
    resources: Resources = Resources()
    postprocess: PostProcessing | None = None
    description: str = ""
    owners: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _freeze(self, "features", "owners")
        _named("model", self.name)
        _named("model team", self.team)
        if self.label not in self.labels.schema:
            raise DeclarationError.of(
                self.title,
                "label",
                self.label,
                f"{', '.join(self.labels.schema)}, the targets of {self.labels.title}",
                "Choose one of them or add it to the labels.",
            )
        if self.trained not in get_args(Trained):
            raise DeclarationError.of(
                self.title, "trained", self.trained, " or ".join(get_args(Trained)), "Choose one of them."
            )
        self._validate_machine()
        self._validate_search()
        self._validate_metric()
        self._validate_columns()
        if self.postprocess is not None:
            self.postprocess.reads(self)

    def _validate_machine(self) -> None:
        if self.compute:
            from resources.compute import kinds

            if self.compute not in kinds():
                raise DeclarationError.of(
                    self.title,
                    "compute",
                    self.compute,
                    ", ".join(kinds()),
                    f"Name one of them, or add resources/compute/{self.compute}.py.",
                )
        if self.accelerator not in ("auto", *self.trainer.accelerators):
            raise DeclarationError.of(
                self.title,
                "accelerator",
                self.accelerator,
                f"auto, {', '.join(self.trainer.accelerators)}: what {type(self.trainer).__name__} can use",
                "Choose one of them, or another trainer.",
            )
        if self.accelerator == "cuda" and self.compute in CLUSTERS and not self.resources.gpus:
            raise DeclarationError.of(
                self.title,
                "resources.gpus",
                0,
                f"1 or more where accelerator is 'cuda' and compute is {self.compute!r}, which gives none unasked",
                "Say resources=Resources(gpus=1).",
            )

    def _validate_search(self) -> None:
        if self.search.prune and not self.trainer.scores:
            raise DeclarationError.of(
                self.title,
                "search.prune",
                self.search.prune,
                f"False with {type(self.trainer).__name__}, which tells no score before a fit has ended",
                "Leave it out, or choose another trainer.",
            )

    def _validate_metric(self) -> None:
        from mlops_assets.metrics import METRICS

        known = sorted(name for name, metric in METRICS.items() if metric.task == self.trainer.task)
        if self.gate.metric not in known:
            raise DeclarationError.of(
                self.title,
                "gate.metric",
                self.gate.metric,
                f"{', '.join(known)}, the metrics of {self.trainer.task}",
                "Choose one that the trainer's task has.",
            )
        if (self.gate.at_least is not None) != METRICS[self.gate.metric].higher_is_better:
            side = "at_least" if METRICS[self.gate.metric].higher_is_better else "at_most"
            raise DeclarationError.of(self.title, "gate", self.gate.metric, side, f"State the floor with {side}=.")

    def _validate_columns(self) -> None:
        from collections import Counter

        stored = [name for item in self.selections for name in item.features]
        computed = [name for item in self.on_demand for name in item.features]
        counts = Counter(self.inputs) | Counter([*self.labels.request, *stored, *computed])
        if twice := [name for name, times in counts.items() if times > 1]:
            raise DeclarationError.of(
                self.title,
                "features",
                twice,
                "distinct names",
                "Two views share a feature name; select with view[[...]].",
            )
        for selection in self.selections:
            if missing := set(selection.view.join_keys) - set(self.labels.join_keys):
                raise DeclarationError.of(
                    self.title,
                    "features",
                    selection.view.name,
                    f"views keyed by {', '.join(self.labels.join_keys)}",
                    f"{self.labels.title} has no join key {', '.join(sorted(missing))}; add the entity to it.",
                )
        for view in (item.view for item in self.on_demand):
            if missing := set(view.asks) - set(self.labels.request):
                raise DeclarationError.of(
                    self.title,
                    "features",
                    view.name,
                    f"on-demand views that ask for {', '.join(self.labels.request) or 'nothing'}",
                    f"{self.labels.title} has no request feature {', '.join(sorted(missing))}; add it there.",
                )
        sliceable = {*self.inputs, *self.labels.join_keys}
        if unknown := [name for name in self.gate.slices if name not in sliceable]:
            raise DeclarationError.of(
                self.title,
                "gate.slices",
                unknown,
                ", ".join(sorted(sliceable)),
                "Slice by a key or an input of the model.",
            )

    @property
    def id(self) -> str:
        """`<team>/<name>`, as the command line and the endpoint name it."""
        return f"{self.team}/{self.name}"

    @property
    def title(self) -> str:
        return f"model '{self.id}'"

    @property
    def registered_name(self) -> str:
        """The name in MLflow's registry, which allows no slash."""
        return f"{self.team}.{self.name}"

    @property
    def chosen(self) -> tuple[FeatureSelection, ...]:
        """What was declared as features, in order: selections of stored and of on-demand views."""
        return tuple(item.selection for item in self.features)

    @property
    def selections(self) -> tuple[StoredSelection, ...]:
        """The stored features to look up, by view: those that are inputs, and those that on-demand views need."""
        wanted: dict[str, StoredSelection] = {}
        needs = [need for computed in self.on_demand for need in computed.view.needs]
        for item in (*self.chosen, *needs):
            if isinstance(item, StoredSelection):
                before = wanted[item.view.id].features if item.view.id in wanted else ()
                wanted[item.view.id] = item.view[tuple(dict.fromkeys((*before, *item.features)))]
        return tuple(wanted.values())

    @property
    def on_demand(self) -> tuple[ComputedSelection, ...]:
        """The computed features among the inputs, by view."""
        return tuple(item for item in self.chosen if isinstance(item, ComputedSelection))

    @property
    def inputs(self) -> tuple[str, ...]:
        """The model's input columns in order: request features, then each view's features."""
        return (*self.labels.request, *(name for item in self.chosen for name in item.features))

    @property
    def input_fields(self) -> dict[str, Field]:
        fields = dict(self.labels.request)
        for item in self.chosen:
            fields.update({name: item.view.schema[name] for name in item.features})
        return fields

    @property
    def task(self) -> Task:
        return self.trainer.task

    def with_(self, **changes: Any) -> ModelPipeline:
        """A copy with some fields changed; a challenger is often one word away from the champion."""
        return replace(self, **changes)
