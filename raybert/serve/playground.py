"""The page at ``GET /``: try each head in a browser; one file, and nothing from outside."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib import resources

from fastapi import APIRouter
from fastapi.responses import HTMLResponse


def playground_routes() -> APIRouter:
    """``GET /``."""
    router = APIRouter()

    @router.get("/", include_in_schema=False)
    async def playground() -> HTMLResponse:
        text, policy = page()
        return HTMLResponse(text, headers={"content-security-policy": policy, "referrer-policy": "no-referrer"})

    return router


@cache
def page() -> tuple[str, str]:
    """The page, and the policy under which a browser obeys its own script and style and no other."""
    text = resources.files("raybert.serve").joinpath("playground.html").read_text("utf-8")
    rules = [
        "default-src 'none'",
        f"script-src {_digest(text, 'script')}",
        f"style-src {_digest(text, 'style')}",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    return text, "; ".join(rules)


def _digest(text: str, tag: str) -> str:
    """The only element of a kind, as a policy names it (Content Security Policy level 3, 2.3.1)."""
    (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"
