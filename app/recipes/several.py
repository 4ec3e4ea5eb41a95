"""Training on several devices, as the recipe page knows it: what this machine offers, and what cannot be."""

from typing import Any

from app.contracts.recipe import Method
from app.recipes.machine import Machine

GROUP = "Devices"


def refusals(values: dict[str, Any], method: Method, machine: Machine) -> dict[str, str]:
    """Field → why this cannot be, and what to do instead. `values` are a recipe's, nested."""
    wrong: dict[str, str] = {}
    devices, processes = list(values.get("devices") or ()), values.get("processes") or 1
    known = {card.id for card in machine.cards}
    if missing := [one for one in devices if one not in known]:
        wrong["devices"] = _missing(missing, machine)
    if processes > 1 and machine.cards:
        wrong["processes"] = "Each graphics card gets one process by itself. Tick the cards, and leave this at 1."
    elif processes > machine.cores:
        cores = "1 core" if machine.cores == 1 else f"{machine.cores} cores"
        wrong["processes"] = f"The processor has {cores}: more processes than that only wait for one another."
    count, rows = len(devices) or processes, values["batch_size"]
    if count > rows and not wrong:
        wrong["devices" if devices else "processes"] = (
            f"{count} of them cannot share {rows} rows: each reads at least one row of every step. Choose fewer, or "
            f"more rows a step."
        )
    if count > 1 and (values.get("scratch") or {}).get("norm") == "batch":
        wrong["scratch.norm"] = "BatchNorm counts over the rows of one process. Choose another norm, or one device."
    if values.get("shards"):
        wrong |= _unsplittable(values, method, count)
    return wrong


def _unsplittable(values: dict[str, Any], method: Method, count: int) -> dict[str, str]:
    if count == 1:
        return {"shards": "There is nobody to split the model with. Choose several devices or processes first."}
    if method not in ("full", "scratch"):
        return {
            "shards": "Only a model of which everything learns is worth splitting. With this method each device holds "
            "the whole base: switch it off, or choose “Everything”."
        }
    if values.get("optimizer") != "adamw":
        return {"shards": "A split model learns with AdamW; the others look at whole matrices. Choose AdamW."}
    if values.get("learn_from") == "preferences":
        return {"shards": "Preferences look at two models at once, which cannot be split. Switch it off."}
    return {}


def _missing(names: list[str], machine: Machine) -> str:
    what = f"graphics card {names[0]}" if len(names) == 1 else f"graphics cards {', '.join(names)}"
    if not machine.cards:
        return f"This machine has no {what}: it trains on its processor. Leave the devices empty."
    return f"This machine has no {what}. Choose of: {', '.join(card.id for card in machine.cards)}."


def without_strangers(overrides: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """A recipe's own values as they fit here: devices of another machine are none of this one's."""
    known = {card.id for card in machine.cards}
    kept = dict(overrides)
    if not set(kept.get("devices") or ()) <= known:
        kept.pop("devices")
    if machine.cards or (kept.get("processes") or 1) > machine.cores:
        kept.pop("processes", None)
    if kept.get("shards") and len(kept.get("devices") or ()) < 2 and (kept.get("processes") or 1) < 2:
        kept.pop("shards")
    return kept
