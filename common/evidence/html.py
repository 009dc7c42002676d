"""Elements of a page as text, escaped by default."""

from html import escape


class Html(str):
    """Text that is HTML already: `tag` leaves it as it is and escapes any other."""

    __slots__ = ()


def tag(name: str, *inner: object, **attributes: object) -> Html:
    """Html of an element. Text inside is escaped; `class_="x"` and `data_key="x"` give class and data-key.

    An attribute of None is left out, one of True has no value. Elements without an end (img) have no `inner`.
    """
    words = [name]
    for key, text in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if text is not None:
            words.append(key if text is True else f'{key}="{escape(str(text))}"')
    end = "" if name in ("img", "br", "input") else f"</{name}>"
    return Html(f"<{' '.join(words)}>{join(*inner)}{end}")


def join(*parts: object, between: str = "") -> Html:
    """Html of parts side by side, each escaped unless it is Html."""
    return Html(between.join(p if isinstance(p, Html) else escape(str(p)) for p in parts))


def link(address: str, *inner: object, **attributes: object) -> Html:
    return tag("a", *inner, href=address, **attributes)
