"""A made-up log in files as somebody would export them, to try scripts/import_log.py with.

    python scripts/make_example_log.py log=bank              -> $CHALLENGE_DATA_PATH/example/bank/transactions.csv
    python scripts/make_example_log.py log=clickstream clients=500 days=90
                                                             -> example/clickstream/clicks/DAY.csv.gz, products.parquet

Both have habits that can be learned: clients with tastes and places of their own, some of whom leave, things that are
new, days of the week and hours. The same settings give the same files. ``configs/schema/bank.yaml`` and
``configs/schema/clickstream.yaml`` read them. The bank's: card payments, direct debits once a month and refunds, with
account, merchant, its code and name, and the amount. The shop's: sessions of visits, searches, carts and purchases of
visitors with UUIDs, times in milliseconds since 1970.
"""

import logging
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl
from omegaconf import DictConfig

from ubp.cli.command import command
from ubp.cli.config import Common, parse
from ubp.cli.output import closing_line
from ubp.io.errors import UserError, require, require_positive
from ubp.io.files import atomic_write
from ubp.io.stage import Stage

logger = logging.getLogger(__name__)

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_VERSION = 1  # raised whenever the same settings give other files
_DAY: Final = 86_400  # seconds

# Shares of a day's events by hour, and of a week's by day from Monday on.
_HOURS: Final = (1, 1, 1, 1, 1, 2, 5, 12, 14, 14, 15, 17, 20, 18, 15, 15, 18, 22, 23, 20, 14, 9, 5, 2)
_WEEKDAYS: Final = (13, 13, 13, 14, 18, 19, 10)

# Merchant code, its name, payments a week of a mean client, euros in the middle, spread of their logarithm.
_TRADES: Final = (
    (5411, "Supermarket", 1.1, 24.0, 0.7),
    (5814, "Cafe", 0.65, 6.5, 0.4),
    (5812, "Restaurant", 0.3, 32.0, 0.5),
    (5541, "Petrol Station", 0.25, 58.0, 0.3),
    (5912, "Pharmacy", 0.15, 14.0, 0.6),
    (5651, "Clothing", 0.125, 45.0, 0.7),
    (5732, "Electronics", 0.05, 120.0, 1.0),
    (5942, "Bookshop", 0.075, 17.0, 0.5),
    (7832, "Cinema", 0.06, 22.0, 0.3),
    (4111, "Railways", 0.2, 19.0, 0.8),
    (6011, "Cash Machine", 0.175, 80.0, 0.5),
    (5311, "Department Store", 0.1, 38.0, 0.8),
)
_DEBITS: Final = ("Electricity", "Mobile Phone", "Insurance", "Gym", "Streaming", "Rent")
_TOWNS: Final = ("Berlin", "Hamburg", "Bremen", "Leipzig", "Kassel", "Mainz", "Ulm", "Kiel")
_BRANDS: Final = ("Adler", "Birke", "Cedar", "Dorn", "Eiche", "Falke", "Linde", "Mohn", "Nord", "Otter")
_SHOPS_A_TOWN: Final = 4  # of each trade
_HABIT: Final = 0.8  # share of payments at the client's own place
_REFUNDS: Final = 0.03
_LEAVERS: Final = 0.35

_DEPARTMENTS: Final = ("garden", "kitchen", "toys", "sports", "music", "office")
_SHELVES: Final = ("basics", "gifts", "spare-parts", "premium", "sale")
_PRODUCTS_A_SHELF: Final = 12
_ADJECTIVES: Final = ("red", "blue", "large", "small", "foldable", "wooden", "steel", "quiet")
_PAGES: Final = 5.0  # a session, on average


@dataclass
class Wanted:
    """What is asked for; see the config."""

    log: str
    folder: str
    clients: int
    start: str
    days: int

    def __post_init__(self) -> None:
        """Refuse what cannot be made.

        Raises:
            UserError: another log, no clients, too few days to be split, no day to start on.
        """
        require(self.log in LOGS, "log", self.log, " or ".join(LOGS))
        require_positive(self, "", "clients")
        require(self.days > 30, "days", self.days, "more than 30: the last 28 become the targets")
        try:
            date.fromisoformat(self.start)
        except ValueError as error:
            raise UserError(f"start={self.start}: not a day; write it as 2025-01-01") from error


# --- clients and times ----------------------------------------------------------------------------------------------


def stays(rng: np.random.Generator, wanted: Wanted) -> tuple[Ints, Ints]:
    """The first and the last day of each client: int64 [clients] each; some come late, some leave."""
    first = np.where(rng.random(wanted.clients) < 0.6, 0, rng.integers(0, wanted.days // 2, wanted.clients))
    leaves = rng.random(wanted.clients) < _LEAVERS
    last = np.where(leaves, rng.integers(first, wanted.days), wanted.days - 1)
    return first.astype(np.int64), last.astype(np.int64)


def seconds_of_day(rng: np.random.Generator, count: int) -> Ints:
    """Moments of a day by its busy hours: int64 [count]."""
    hours = rng.choice(24, count, p=np.array(_HOURS) / sum(_HOURS))
    return np.asarray(hours * 3600 + rng.integers(0, 3600, count), np.int64)


def days_within(rng: np.random.Generator, first: Ints, last: Ints, start: str) -> Ints:
    """A day from each first to each last one, busy days of the week more often: int64, by rejection."""
    weight = np.array(_WEEKDAYS) / max(_WEEKDAYS)
    monday = date.fromisoformat(start).weekday()
    days = rng.integers(first, last + 1)
    for _ in range(3):
        again = rng.random(len(days)) > weight[(days + monday) % 7]
        days[again] = rng.integers(first[again], last[again] + 1)
    return days


def moments(start: str, seconds: Ints) -> pl.Series:
    """Seconds from the start's midnight on as times, as if UTC: Datetime(us)."""
    begin = int(datetime.fromisoformat(f"{start}T00:00:00+00:00").timestamp())
    return pl.Series((begin + seconds) * 1_000_000).cast(pl.Datetime("us"))


# --- the bank -------------------------------------------------------------------------------------------------------


def bank(wanted: Wanted, seed: int) -> dict[str, pl.DataFrame]:
    """Transactions, in the order of time."""
    rng = np.random.default_rng(seed)
    first, last = stays(rng, wanted)
    town = rng.integers(0, len(_TOWNS), wanted.clients)
    table = pl.concat([_payments(rng, wanted, first, last, town), _debits(rng, wanted, first, last)])
    refunded = table.filter(pl.Series(rng.random(len(table)) < _REFUNDS) & (pl.col("kind") == "card"))
    later = pl.Series(rng.integers(_DAY, 9 * _DAY, len(refunded)))
    refunds = refunded.with_columns(kind=pl.lit("refund"), seconds=pl.col("seconds") + later)
    rows = pl.concat([table, refunds.filter(pl.col("seconds") < wanted.days * _DAY)]).sort("seconds", "account")
    booked = moments(wanted.start, rows["seconds"].to_numpy()).dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    accounts = _account_numbers(rng, wanted.clients)[rows["account"].to_numpy()]
    columns = ("account", "booked_at", "kind", "merchant", "merchant_name", "merchant_code", "amount")
    return {"transactions.csv": rows.with_columns(account=accounts, booked_at=booked).select(columns)}


def _account_numbers(rng: np.random.Generator, count: int) -> pl.Series:
    numbers = rng.choice(10**9, count, replace=False)
    return pl.Series([f"DE{number % 97:02}{number:010}" for number in numbers.tolist()])


def _payments(rng: np.random.Generator, wanted: Wanted, first: Ints, last: Ints, town: Ints) -> pl.DataFrame:
    """Card payments: most at the client's own place of a trade, as often as the client likes the trade."""
    clients, trades = wanted.clients, len(_TRADES)
    code, name, a_week, euros, spread = (np.array(column) for column in zip(*_TRADES, strict=True))
    liking = np.exp(0.8 * rng.standard_normal((clients, trades))) * np.exp(0.5 * rng.standard_normal((clients, 1)))
    weeks = (last - first + 1)[:, None] / 7
    counts = rng.poisson(liking * a_week * weeks).ravel()
    who, trade = (np.repeat(side.ravel(), counts) for side in np.indices((clients, trades)))
    own = rng.integers(0, _SHOPS_A_TOWN, (clients, trades))[who, trade]
    at_home = rng.random(len(who)) < _HABIT
    shop = np.where(at_home, own, rng.integers(0, _SHOPS_A_TOWN, len(who)))
    place = np.where(at_home | (rng.random(len(who)) < 0.5), town[who], rng.integers(0, len(_TOWNS), len(who)))
    days = days_within(rng, first[who], last[who], wanted.start)
    # A quarter of the shops opens during the year; before that one goes to the first one of the trade.
    number = (trade * len(_TOWNS) + place) * _SHOPS_A_TOWN + shop
    opens = np.where(rng.random(trades * len(_TOWNS) * _SHOPS_A_TOWN) < 0.25, 1.0, 0.0)
    opens *= rng.random(len(opens)) * wanted.days
    shop = np.where(opens[number] <= days, shop, 0)
    number = (trade * len(_TOWNS) + place) * _SHOPS_A_TOWN + shop
    amount = np.round(euros[trade] * np.exp(spread[trade] * rng.standard_normal(len(who))), 2)
    brand = np.array(_BRANDS)[(number * 7 + trade) % len(_BRANDS)]
    words = [brand, name[trade], np.array(_TOWNS)[place]]
    return pl.DataFrame(
        {
            "account": who,
            "seconds": days * _DAY + seconds_of_day(rng, len(who)),
            "kind": ["card"] * len(who),
            "merchant": pl.select(pl.format("M{}", pl.Series(10_000 + number))).to_series(),
            "merchant_name": pl.select(pl.concat_str([pl.Series(word) for word in words], separator=" ")).to_series(),
            "merchant_code": code[trade].astype(np.int64),
            "amount": amount,
        }
    )


def _debits(rng: np.random.Generator, wanted: Wanted, first: Ints, last: Ints) -> pl.DataFrame:
    """Direct debits: the same amount on the same day of each month."""
    clients, months = wanted.clients, wanted.days // 30 + 1
    has = rng.random((clients, len(_DEBITS))) < 0.45
    who, what = (side.astype(np.int64) for side in np.nonzero(has))
    day, amount = rng.integers(0, 28, len(who)), np.round(np.exp(3.4 + 0.8 * rng.standard_normal(len(who))), 2)
    company = rng.integers(0, 3, len(who))
    month, line = (side.ravel() for side in np.indices((months, len(who))))
    days = month * 30 + day[line]
    kept = (days >= first[who[line]]) & (days <= last[who[line]])
    line, days = line[kept], days[kept]
    names = [f"{_BRANDS[company]} {debit}" for debit in _DEBITS for company in range(3)]
    number = what[line] * 3 + company[line]
    return pl.DataFrame(
        {
            "account": who[line],
            "seconds": days * _DAY + 3600 * 5,
            "kind": ["direct_debit"] * len(line),
            "merchant": pl.select(pl.format("D{}", pl.Series(100 + number))).to_series(),
            "merchant_name": pl.Series(names).gather(number),
            "merchant_code": 4900 + what[line],
            "amount": amount[line],
        }
    )


# --- the web shop ---------------------------------------------------------------------------------------------------


def clickstream(wanted: Wanted, seed: int) -> dict[str, pl.DataFrame]:
    """A file of clicks for each day, and the products."""
    rng = np.random.default_rng(seed)
    products = _products(rng)
    first, last = stays(rng, wanted)
    sessions = rng.poisson((last - first + 1) / 7 * np.exp(0.9 * rng.standard_normal(wanted.clients) - 0.4)) + 1
    who = np.repeat(np.arange(wanted.clients), sessions)
    taste = rng.integers(0, len(_DEPARTMENTS), (wanted.clients, 2))[who, rng.integers(0, 2, len(who))]
    department = np.where(rng.random(len(who)) < 0.85, taste, rng.integers(0, len(_DEPARTMENTS), len(who)))
    begins = days_within(rng, first[who], last[who], wanted.start) * _DAY + seconds_of_day(rng, len(who))
    reads = np.exp(rng.standard_normal(wanted.clients) - 1.2)[who]  # how readily a client buys
    clicks = 1 + rng.poisson(_PAGES - 1, len(who))
    session = np.repeat(np.arange(len(who)), clicks)
    place = np.arange(len(session)) - np.repeat(np.cumsum(clicks) - clicks, clicks)
    shelf_rank = np.minimum(rng.exponential(1.2, len(session)).astype(np.int64), len(_SHELVES) - 1)
    rank = np.minimum(rng.exponential(3.0, len(session)).astype(np.int64), _PRODUCTS_A_SHELF - 1)
    product = (department[session] * len(_SHELVES) + shelf_rank) * _PRODUCTS_A_SHELF + rank
    drawn, buying = rng.random(len(session)), np.minimum(reads[session], 1.0)
    kinds = [drawn < 0.15 * buying + 0.01, drawn < 0.35 * buying + 0.03, drawn < 0.45]
    action = np.select(kinds, ["purchase", "cart", "search"], "view")
    action = np.where(place == 0, "view", action)
    visitors = [str(uuid.UUID(bytes=rng.bytes(16), version=4)) for _ in range(wanted.clients)]
    seconds = begins[session] + place * 40 + rng.integers(0, 30, len(session))
    chosen = products[product]
    seen, sought = pl.col("action") == "view", pl.col("action") == "search"
    adjective = pl.Series(_ADJECTIVES).gather(rng.integers(0, len(_ADJECTIVES), len(session)))
    table = pl.DataFrame({"seconds": seconds, "session": session, "visitor": pl.Series(visitors).gather(who[session])})
    table = table.with_columns(
        chosen, action=pl.Series(action.tolist()), adjective=adjective, at=moments(wanted.start, seconds).dt.epoch("ms")
    ).filter(pl.col("seconds") < wanted.days * _DAY)
    bought = pl.col("action").is_in(["purchase", "cart"])
    table = table.sort("seconds", "session").select(
        "at",
        "visitor",
        "session",
        "action",
        page=pl.when(seen).then(pl.format("/{}/{}", "department", "shelf")),
        words=pl.when(sought).then(pl.format("{} {}", "adjective", "noun")),
        product=pl.when(bought).then("product"),
        price=pl.when(pl.col("action") == "purchase").then("list_price"),
        day=pl.from_epoch("at", "ms").dt.strftime("%Y-%m-%d"),
    )
    days = table.partition_by("day", as_dict=True, include_key=False)
    files = {f"clicks/{day[0]}.csv.gz": rows for day, rows in days.items()}
    return {**files, "products.parquet": products.drop("noun")}


def _products(rng: np.random.Generator) -> pl.DataFrame:
    count = len(_DEPARTMENTS) * len(_SHELVES) * _PRODUCTS_A_SHELF
    number = np.arange(count)
    department = number // (len(_SHELVES) * _PRODUCTS_A_SHELF)
    singular = [name.removesuffix("s") for name in _DEPARTMENTS]
    noun = [f"{name} {word}" for name in singular for word in ("set", "box", "stand")]
    nouns = pl.Series(noun).gather(department * 3 + number % 3)
    adjectives = pl.Series(_ADJECTIVES).gather(rng.integers(0, len(_ADJECTIVES), count))
    return pl.DataFrame(
        {
            "product": [f"P-{each:05}" for each in number.tolist()],
            "department": pl.Series(_DEPARTMENTS).gather(department),
            "shelf": pl.Series(_SHELVES).gather(number // _PRODUCTS_A_SHELF % len(_SHELVES)),
            "title": pl.select(pl.format("{} {}", adjectives, nouns)).to_series(),
            "noun": nouns,
            "brand": pl.Series(_BRANDS).gather(rng.integers(0, len(_BRANDS), count)),
            "list_price": np.round(np.exp(3.0 + rng.standard_normal(count)), 2),
        }
    )


LOGS: Final[dict[str, Callable[[Wanted, int], dict[str, pl.DataFrame]]]] = {"bank": bank, "clickstream": clickstream}


# --- writing --------------------------------------------------------------------------------------------------------


def write(files: dict[str, pl.DataFrame], folder: Path) -> None:
    """All files of a log, or none; the format is that of their names."""
    with atomic_write(folder) as aside:
        for name, table in files.items():
            file = aside / name
            file.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix == ".parquet":
                table.write_parquet(file)
            else:
                table.write_csv(file, compression="gzip" if file.suffix == ".gz" else "uncompressed")


@command("scripts", "make_example_log")
def main(config: DictConfig) -> None:
    common, wanted = Common.of(config), parse(Wanted, config, ["log", "folder", "clients", "start", "days"])
    folder = Path(wanted.folder)
    stage = Stage("example log", (folder,), lambda: {"version": _VERSION, "seed": common.seed, **asdict(wanted)})
    with stage.once(common.overwrite):
        if folder.exists() and not stage.is_begun():
            raise UserError(f"{folder}: there is something else already; name another folder: folder=...")
        files = LOGS[wanted.log](wanted, common.seed)
        stage.begin()
        write(files, folder)
    rows = sum(len(table) for name, table in files.items() if ".csv" in name)
    closing_line(f"example log · {rows:,} events of {wanted.clients:,} clients", folder)


if __name__ == "__main__":
    main()
