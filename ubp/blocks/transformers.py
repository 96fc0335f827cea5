"""The transformers of a merge: fitted once, kept as numbers and text, restored to give the same bits.

A transformer of scikit-learn is a name, arguments and the attributes that its fit set. The name and the arguments are
in the merge's config; the attributes are kept beside them, arrays as arrays, all else as JSON. Nothing is pickled.
"""

import inspect
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Self

import hydra.utils
import numpy as np
import numpy.typing as npt
from hydra.errors import HydraException

from ubp.io.errors import UserError

if TYPE_CHECKING:  # a second of imports; Hydra makes the transformers that a merge names
    from sklearn.base import TransformerMixin

Matrix = npt.NDArray[np.float32]
Transformer = dict[str, Any]  # `_target_` and arguments of a scikit-learn transformer
Arrays = dict[str, npt.NDArray[Any]]

_GLOBAL: Final = "global"  # the one argument that is ours: all values as one column
_KEPT_KINDS: Final = "biuf"  # numpy's letters for bool, int, unsigned, float
_LONGEST: Final = 8  # bytes of a number that can be kept


class RootMeanSquare:  # a transformer by its methods: scikit-learn's base classes cost a second of imports
    """A scaler: all vectors by one number, so that the root mean square of their lengths is 1.

    Unlike a scaling to unit length it keeps what a vector's length says: of a sum over a client's events, how much
    the client did. Vectors of zeros stay so.
    """

    def fit(self, values: Matrix, _: object = None) -> Self:
        """Take the length from vectors [clients, columns]."""
        length = float(np.sqrt(np.square(values, dtype=np.float64).sum() / max(len(values), 1)))
        self.length_ = length or 1.0
        return self

    def transform(self, values: Matrix) -> Matrix:
        """The vectors, scaled: float32 [clients, columns]."""
        return np.asarray(values / np.float32(self.length_), dtype=np.float32)

    def fit_transform(self, values: Matrix) -> Matrix:
        """Both."""
        return self.fit(values).transform(values)


@dataclass(frozen=True)
class FittedTransformer:
    """A transformer that has been fitted.

    Attributes:
        settings: its ``_target_`` and arguments; with ``global: true`` all values are one column to it.
        transformer: the instance.
    """

    settings: Transformer
    transformer: "TransformerMixin"

    @classmethod
    def fit(cls, settings: Transformer, values: Matrix) -> Self:
        """Fit a new transformer.

        Args:
            settings: see the attributes.
            values: float32 [clients, columns], at least one client; left as they are.

        Raises:
            UserError: there is no such transformer, or it transforms nothing but what it was fitted on.
            ValueError: the values do not suit it.
        """
        made = cls(settings, _instance(settings))
        if not hasattr(made.transformer, "transform"):
            raise UserError(
                f"{settings['_target_']}: has no transform(), so it suits no other client than those it was fitted on; "
                "choose another transformer"
            )
        in_place = any(
            name.startswith("copy") and value is False for name, value in vars(made.transformer).items()
        )  # PCA(copy=False) would leave the values centred
        made.transformer.fit(made._shaped(values.copy() if in_place else values))
        return made

    def apply(self, values: Matrix) -> Matrix:
        """The transformed values, float32 [clients, columns]; the argument may be overwritten.

        Args:
            values: float32 [clients, columns], at least one client.
        """
        found = np.asarray(self.transformer.transform(self._shaped(values)), dtype=np.float32)
        return found.reshape(values.shape) if self._one_column else found

    @property
    def _one_column(self) -> bool:
        return bool(self.settings.get(_GLOBAL, False))

    def _shaped(self, values: Matrix) -> Matrix:
        return values.reshape(-1, 1) if self._one_column else values

    def state(self, name: str, arrays: Arrays) -> dict[str, Any]:
        """What `from_state` makes the same transformer of, as JSON.

        Args:
            name: begins the names of its arrays.
            arrays: are added to it.

        Raises:
            UserError: an attribute can be kept neither as an array nor as JSON; which one, of which transformer.
        """
        given = set(inspect.signature(type(self.transformer)).parameters)
        learned = {
            key: value
            for key, value in vars(self.transformer).items()
            # An argument is in the settings; but a pipeline fits those that it is given in place.
            if key not in given or _holds_estimator(value)
        }
        kind = type(self.transformer).__name__
        attributes = {key: _kept(value, f"{kind}.{key}", f"{name}.{key}", arrays) for key, value in learned.items()}
        return {"settings": self.settings, "attributes": attributes}

    @classmethod
    def from_state(cls, state: dict[str, Any], arrays: Arrays) -> Self:
        """The transformer that gave this state.

        Raises:
            UserError: there is no such transformer any more.
        """
        made = cls(state["settings"], _instance(state["settings"]))
        for key, value in state["attributes"].items():
            setattr(made.transformer, key, _restored(value, arrays))
        return made


def _instance(settings: Transformer) -> "TransformerMixin":
    if "_target_" not in settings:
        raise UserError(f"{settings}: a transformer needs its _target_, such as sklearn.preprocessing.Normalizer")
    try:
        arguments = {key: value for key, value in settings.items() if key != _GLOBAL}
        made: TransformerMixin = hydra.utils.instantiate(arguments, _convert_="all")
        return made
    except HydraException as error:
        raise UserError(f"{settings.get('_target_')}: {' '.join(str(error).split())}") from error


def _holds_estimator(value: object) -> bool:
    """Whether a value is an estimator of scikit-learn, or a list that has one."""
    if isinstance(value, list | tuple):
        return any(map(_holds_estimator, value))
    return _is_estimator(value)


def _is_estimator(value: object) -> bool:
    return type(value).__module__.startswith("sklearn.") and hasattr(value, "get_params")


def _kept(value: object, what: str, name: str, arrays: Arrays) -> Any:  # noqa: ANN401, C901 (a case a kind of value)
    """A value as JSON: numbers, text, bools and None as they are, all else as a mapping that says what it is.

    Args:
        value: an attribute, or a value in one.
        what: it is, for the error.
        name: of its array; values in it get longer ones.
        arrays: where arrays are put.

    Raises:
        UserError: it cannot be kept.
    """

    def inside(items: object) -> list[Any]:
        return [_kept(item, what, f"{name}.{place}", arrays) for place, item in enumerate(items)]  # type: ignore[arg-type, var-annotated]

    match value:
        case np.generic() if value.dtype.kind in _KEPT_KINDS and value.dtype.itemsize <= _LONGEST:
            return {"number": value.item(), "dtype": value.dtype.name}  # a float32 is not a Python float
        case np.ndarray() if type(value) is np.ndarray and value.dtype == object:
            return {"objects": inside(value.ravel().tolist()), "shape": list(value.shape)}
        case np.ndarray() if (
            type(value) is np.ndarray and value.dtype.kind in _KEPT_KINDS and value.dtype.itemsize <= _LONGEST
        ):
            # Its order in memory decides by which kernel a matrix is multiplied, and so the last bits.
            by_columns = value.ndim > 1 and value.flags.f_contiguous and not value.flags.c_contiguous
            arrays[name] = value.T if by_columns else value
            return {"array": name, "shape": list(value.shape), "by_columns": by_columns}
        case None | bool() | int() | float() | str() if not isinstance(value, np.generic):
            return value
        case list():
            return {"list": inside(value)}
        case tuple() if type(value) is tuple:
            return {"tuple": inside(value)}
        case dict() if type(value) is dict:
            return {"pairs": inside(item for pair in value.items() for item in pair)}
        case np.dtype() if value.kind in _KEPT_KINDS:
            return {"dtype_itself": value.name}
        case type() if issubclass(value, np.generic):
            return {"dtype_class": np.dtype(value).name}
        case _ if _is_estimator(value):
            fields = {key: _kept(found, f"{what}.{key}", f"{name}.{key}", arrays) for key, found in vars(value).items()}
            return {"estimator": [type(value).__module__, type(value).__qualname__], "fields": fields}
    raise UserError(f"{what}: a {type(value).__name__} can be kept neither as an array nor as JSON")


def _restored(kept: Any, arrays: Arrays) -> Any:  # noqa: ANN401 (whatever was kept)
    """The value that `_kept` gave this for."""
    match kept:
        case {"number": value, "dtype": dtype}:
            return np.dtype(dtype).type(value)
        case {"objects": items, "shape": shape}:
            objects = np.empty(len(items), dtype=object)
            objects[:] = [_restored(item, arrays) for item in items]
            return objects.reshape(shape)
        case {"array": name, "shape": shape, "by_columns": by_columns}:
            return arrays[name].reshape(shape[::-1]).T if by_columns else arrays[name].reshape(shape)
        case {"list": items}:
            return [_restored(item, arrays) for item in items]
        case {"tuple": items}:
            return tuple(_restored(item, arrays) for item in items)
        case {"pairs": items}:
            found = [_restored(item, arrays) for item in items]
            return dict(zip(found[::2], found[1::2], strict=True))
        case {"dtype_itself": name}:
            return np.dtype(name)
        case {"dtype_class": name}:
            return np.dtype(name).type
        case {"estimator": [module, name], "fields": fields}:
            return _estimator(module, name, {key: _restored(value, arrays) for key, value in fields.items()})
    return kept


def _estimator(module: str, name: str, fields: dict[str, Any]) -> object:
    if not module.startswith("sklearn."):
        raise UserError(f"{module}.{name}: no estimator of scikit-learn; merge again")
    kind = getattr(import_module(module), name)
    made = kind.__new__(kind)
    vars(made).update(fields)
    return made
