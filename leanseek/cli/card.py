"""leanseek card: a run's model card, written anew from what its folder holds, or checked for what it does not say."""

from __future__ import annotations

from pathlib import Path

from leanseek.cost.card import model_card
from leanseek.cost.fields import hint_of, missing_fields
from leanseek.errors import RunError
from leanseek.files import write_atomic
from leanseek.run import Run


def card(run: Path, *, check: bool = False) -> None:
    """Write a run's MODEL_CARD.md anew; or with --check, leave it as it is and fail where a field is missing.

    The card has Hugging Face's metadata and a table of what documentation of a general-purpose model has to say, each
    row with the clause that asks for it (EU AI Act, Annexes XI and XII; ISO/IEC 42001, Annex A).

    Example: leanseek card runs/laptop --check

    Args:
        run: A run folder.
        check: Name the fields that the card lacks, and fail if there are any.
    """
    opened = Run.open(run)
    if not check:
        write_atomic(opened.card_path, model_card(opened.summary, opened.recipe.model_dump(mode="json")))
        print(opened.card_path)
        return
    try:
        text = opened.card_path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RunError(f"{run} has no MODEL_CARD.md; write it: leanseek card {run}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{opened.card_path} cannot be read ({error}); write it anew: leanseek card {run}") from None
    if missing := missing_fields(text):
        told = "\n".join(f"  {name} ({hint_of(name)})" for name in missing)
        raise RunError(f"{opened.card_path} does not say:\n{told}")
    print(f"{opened.card_path}: nothing is missing")
