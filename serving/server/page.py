"""The server's description as a page for people: requests to copy, their answers, and the features of a row."""

import json
import re
import shlex
from collections.abc import Iterator
from html import escape
from typing import Any
from urllib.parse import quote

Schema = dict[str, Any]

_STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}"
    "pre{background:#f4f4f4;padding:.8em 1em;margin:.4em 0 1em;white-space:pre-wrap;overflow-wrap:anywhere}"
    "code,pre{font:14px/1.45 monospace}h2{margin:2em 0 .3em}h2 code{font-size:1.1rem}h3{font-size:1em;margin:1.2em 0 0}"
    "table{border-collapse:collapse}td,th{text-align:left;padding:.3em 1.2em .3em 0;border-bottom:1px solid #ddd;"
    "vertical-align:top;overflow-wrap:anywhere}p{margin:.4em 0}"
)
_BREAK = " \\\n  "
_TOKEN = (
    "<p>Every path except the probes needs a token: send the header <code>Authorization: Bearer TOKEN</code> with the "
    "value that <code>MUXREC_SERVE_TOKEN</code> had when the server was started. The commands below read it from your "
    "shell: <code>export MUXREC_SERVE_TOKEN=...</code></p>"
)
_NO_TOKEN = (
    "<p>No token is needed: the server was started without <code>MUXREC_SERVE_TOKEN</code>. With it, every path except "
    "the probes needs the header <code>Authorization: Bearer TOKEN</code>.</p>"
)


def page_of(document: Schema, host: str | None) -> str:
    """An OpenAPI document as one self-contained page of HTML.

    `host`: the server's name in the request, for the example commands.
    """
    info, has_token = document["info"], "security" in document
    address = f"http://{host}" if host and re.fullmatch(r"[\w.:\[\]-]+", host, re.ASCII) else "http://localhost:8080"
    scoring, others = [], []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            filled = _filled(path, operation)
            if "requestBody" in operation and not filled.count("/versions/"):
                scoring.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2>")
                scoring += _requests(operation, address + filled, has_token)
            else:
                row = f"<code>{method.upper()} {escape(path)}</code>", escape(operation["summary"])
                others.append("<tr><td>" + "<td>".join(row))
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(info['title'])}</title>"
        f"<style>{_STYLE}</style><h1>{escape(info['title'])}</h1><p>{escape(info['description'])} "
        f"For machines: <a href=openapi.json>openapi.json</a>.</p>{_TOKEN if has_token else _NO_TOKEN}"
        f"{''.join(scoring)}<h2>Features of a row</h2><table><tr><th>Feature<th>Values<th>Examples"
        f"{''.join(_features(document))}</table><h2>Other paths</h2><table>{''.join(others)}</table></html>"
    )


def _filled(path: str, operation: Schema) -> str:
    for parameter in operation.get("parameters", ()):
        path = path.replace(f"{{{parameter['name']}}}", quote(parameter["schema"]["enum"][0], safe=""))
    return path


def _requests(operation: Schema, url: str, has_token: bool) -> Iterator[str]:
    yield f"<p>{escape(operation['summary'])}. {escape(operation.get('description', ''))}</p>"
    answers = operation["responses"]["200"]["content"]["application/json"]["examples"]
    for media_type, body in operation["requestBody"]["content"].items():
        for name, example in body["examples"].items():
            value = example["value"]
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            token = ['-H "Authorization: Bearer $MUXREC_SERVE_TOKEN"'] if has_token else []
            lines = [f"curl -s {shlex.quote(url)}", f"-H 'Content-Type: {media_type}'", *token]
            lines.append(f"--data-binary {shlex.quote(text)}")
            answer = json.dumps(answers[name]["value"], ensure_ascii=False)
            yield f"<h3>{escape(name)}</h3><pre>{escape(_BREAK.join(lines))}</pre>Answer<pre>{escape(answer)}</pre>"


def _features(document: Schema) -> Iterator[str]:
    for name, schema in document["components"]["schemas"]["Row"]["properties"].items():
        examples = ", ".join(json.dumps(one, ensure_ascii=False) for one in schema["examples"])
        cells = f"<code>{escape(name)}</code>", escape(schema["description"]), f"<code>{escape(examples)}</code>"
        yield "<tr><td>" + "<td>".join(cells)
