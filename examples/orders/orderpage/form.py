"""The form of an order and what the server checks in it; the collector checks it all again."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Sequence
from typing import Any

from flask_wtf import FlaskForm
from wtforms import Field, HiddenField, PasswordField, RadioField, StringField
from wtforms.validators import AnyOf, DataRequired, Length, StopValidation, ValidationError

PRODUCTS = {"iu_ticket": "IU ticket", "cp_ticket": "CP ticket", "ee_ticket": "EE ticket"}
"""The products by the name that is ordered."""

_FOREIGN = "This page was open for too long, or cookies are switched off. Check the order and place it again."


_NOT_CUT = {"maxlength": False}
"""A browser would cut what is too long without a word; the server says so."""


def _trimmed(text: str | None) -> str | None:
    return None if text is None else text.strip()


def _printable(_: FlaskForm, field: Field) -> None:
    if not field.data.isprintable():
        raise ValidationError("Use letters, digits and punctuation on one line.")


def _user_id(_: FlaskForm, field: Field) -> None:
    if re.fullmatch(r"[A-Za-z0-9._@-]+", field.data) is None:
        raise ValidationError("Use letters from a to z, digits and . _ @ - only.")


def _four_digits(_: FlaskForm, field: Field) -> None:
    if re.fullmatch(r"[0-9]{4}", field.data) is None:
        raise ValidationError("A PIN is exactly 4 digits.")


def _uuid(_: FlaskForm, field: Field) -> None:
    try:
        if str(uuid.UUID(field.data)) != field.data:
            raise ValueError
    except (ValueError, TypeError):
        field.data = str(uuid.uuid4())
        raise StopValidation(_FOREIGN) from None


class OrderForm(FlaskForm):  # type: ignore[misc]
    """Fields have the names that pipeline `orders` declares."""

    order_key = HiddenField(validators=[_uuid])
    """Made with the form: whatever is sent with it, how often it may be, is one order."""
    name = StringField(
        "Name", [DataRequired("Enter your name."), Length(max=100, message="Use at most 100 characters."), _printable],
        filters=[_trimmed], render_kw={**_NOT_CUT, "autocomplete": "name"},
    )  # fmt: skip
    user_id = StringField(
        "User id",
        [DataRequired("Enter your user id."), Length(max=64, message="Use at most 64 characters."), _user_id],
        filters=[_trimmed],
        render_kw={**_NOT_CUT, "autocomplete": "username", "autocapitalize": "none", "spellcheck": "false"},
    )  # fmt: skip
    password = PasswordField(
        "PIN", [DataRequired("Enter your PIN."), _four_digits],
        description="4 digits", render_kw={"autocomplete": "off", "inputmode": "numeric"},
    )  # fmt: skip
    product = RadioField(
        "Product",
        [DataRequired("Choose a product."), AnyOf(PRODUCTS, f"Choose one of {', '.join(PRODUCTS.values())}.")],
        choices=list(PRODUCTS.items()), validate_choice=False,
    )  # fmt: skip

    problems: Sequence[str] = ()
    """What is wrong with the form as a whole."""

    def validate(self, extra_validators: Any = None) -> bool:
        """Whether it can be sent; the reasons are then in the fields and in :attr:`problems`."""
        valid: bool = super().validate(extra_validators)
        if self.csrf_token.errors or self.order_key.errors:
            self.problems = [_FOREIGN]
        return valid

    def refuse(self, errors: Sequence[tuple[str, str]]) -> None:
        """Put what the collector found, (field, message), beside the fields."""
        for name, message in errors:
            if name in ("name", "user_id", "password", "product"):
                self[name].errors = [*self[name].errors, message]
            else:
                self.problems = [*self.problems, message]

    def event(self) -> dict[str, str]:
        """The order as pipeline `orders` declares it."""
        return {name: self[name].data for name in ("name", "user_id", "password", "product")}

    def event_id(self) -> str:
        """The same for the same order on the same form.

        A page that a browser brought back can be changed and sent: that is another order, and must not be taken for a
        repetition of the first. The PIN is left out, because this id is stored where the PIN must not be guessed.
        """
        content = json.dumps([self.name.data, self.user_id.data, self.product.data])
        return str(uuid.uuid5(uuid.UUID(self.order_key.data), content))
