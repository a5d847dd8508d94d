"""The shop's web service: ``/``, ``/price/<item>`` and ``/health``."""

import os

from flask import Flask, abort, jsonify, request

from shop import __version__, _prices

PRICES = {"bread": 320, "cheese": 745, "coffee": 280, "tea": 190}
"""Price of each item, in cents, before tax."""

TAX_PERCENT = 19

app = Flask(__name__)
version = os.environ.get("APP_VERSION") or __version__


@app.get("/")
def shop():
    """Say who answers, and what one of everything costs."""
    counts = [1] * len(PRICES)
    total = _prices.total(list(PRICES.values()), counts, TAX_PERCENT)
    return jsonify(name="shop", version=version, items=PRICES, total_cents=total)


@app.get("/price/<item>")
def price(item):
    """Say what some of one item cost with tax; ``?count=3`` asks for three."""
    if item not in PRICES:
        abort(404, f"There is no {item!r} here.")
    count = request.args.get("count", "1")
    if not count.isdecimal() or not 1 <= int(count) <= 1000:
        abort(400, "The count must be a number between 1 and 1000.")
    total = _prices.total([PRICES[item]], [int(count)], TAX_PERCENT)
    return jsonify(item=item, count=int(count), total_cents=total)


@app.get("/health")
def health():
    """Say that the service is ready to answer."""
    return jsonify(status="ok", version=version)


@app.errorhandler(400)
@app.errorhandler(404)
def refuse(error):
    """Answer a mistake in JSON too."""
    return jsonify(error=error.description), error.code
