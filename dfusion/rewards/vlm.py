"""A yes-or-no question to a vision-language model: --config.eval.reward vlm.

The model is asked through an address that speaks OpenAI's chat completions, such as vLLM's,
llama.cpp's or a provider's. The score is the probability of "yes" against "no" as the first token
where the server gives log-probabilities, else 1 for the answer "yes" and 0 for "no". An API key, if
the server wants one, is read from $VLM_API_KEY; it is written nowhere.
"""

import base64
import http.client
import io
import json
import math
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image

from dfusion.errors import UserError, reason
from dfusion.settings.schema import Eval

KEY = "VLM_API_KEY"
ATTEMPTS = 5
PAUSE = 1.0  # seconds before the second attempt; doubled before each further one
LONGEST_PAUSE = 60.0
TIMEOUT = 60.0  # seconds without a byte from the server
AT_ONCE = 8  # requests
MOST_TOKENS = 4  # of an answer
AGAIN = {408, 409, 425, 429}  # and all from 500


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirection is an error: the key must not go to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


class _Transient(Exception):  # noqa: N818
    """What went wrong, if another attempt may help. after: seconds that the server asks for."""

    def __init__(self, why: str, after: float = 0.0) -> None:
        super().__init__(why)
        self.after = after


class YesNo:
    """question: with {prompt} where the image's prompt belongs."""

    def __init__(
        self,
        address: str,
        model: str,
        question: str,
        timeout: float = TIMEOUT,
        pause: float = PAUSE,
    ) -> None:
        self.address = address.rstrip("/") + "/chat/completions"
        self.model, self.question = model, question
        self._timeout, self._pause = timeout, pause
        self._logprobs = True  # until the server refuses to give them
        self._open = urllib.request.build_opener(_NoRedirect).open

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(self._score, images, prompts))

    def _score(self, image: Image.Image, prompt: str) -> float:
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, format="PNG")
        picture = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        content = [
            {"type": "image_url", "image_url": {"url": picture}},
            {"type": "text", "text": self.question.replace("{prompt}", prompt)},
        ]
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": MOST_TOKENS,
        }
        for attempt in range(ATTEMPTS):
            try:
                return yes(self._ask(body))
            except _Transient as error:
                why, after = str(error), error.after
            if attempt < ATTEMPTS - 1:
                time.sleep(min(LONGEST_PAUSE, max(after, self._pause * 2**attempt)))
        raise UserError(f"{self.address}: {why}, {ATTEMPTS} times; is the server well?")

    def _ask(self, body: dict[str, Any]) -> Any:
        """The server's answer. Raises UserError, or _Transient if another attempt may help."""
        asked = self._logprobs
        sent = {**body, "logprobs": True, "top_logprobs": 20} if asked else body
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.address, json.dumps(sent).encode(), headers)
        try:
            with self._open(request, timeout=self._timeout) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                if error.code in (400, 422) and asked:
                    self._logprobs = False
                    return self._ask(body)
                raise self._failure(error) from None
        except TimeoutError:
            raise _Transient(f"no answer in {self._timeout:g} s") from None
        except (OSError, http.client.HTTPException) as error:  # urllib's own are OSErrors
            if isinstance(getattr(error, "reason", None), TimeoutError):
                raise _Transient(f"no answer in {self._timeout:g} s") from None
            raise _Transient(f"cannot be reached ({reason(error)})") from None
        except ValueError:
            raise _Transient("the answer is not JSON") from None

    def _failure(self, error: urllib.error.HTTPError) -> Exception:
        why = f"answered {error.code} {error.reason}"
        if error.code in AGAIN or error.code >= 500:
            after = error.headers.get("Retry-After") or ""
            return _Transient(why, float(after) if after.isdecimal() else 0.0)
        remedies = {401: f"set {KEY}", 403: f"check {KEY}", 404: "check --config.eval.vlm_address"}
        said = error.read(300).decode(errors="replace").strip()
        key = os.environ.get(KEY)
        said = said.replace(key, "…") if key else said
        remedy = remedies.get(error.code, f"check --config.eval.vlm_model '{self.model}'")
        return UserError(f"{self.address}: {why} ({said}); {remedy}")


def yes(answer: Any) -> float:
    """The score that an answer gives. Raises _Transient if it is none of a chat completion's, and
    UserError if it is neither yes nor no."""
    try:
        choice = answer["choices"][0]
        text = str(choice["message"]["content"] or "")
        first = ((choice.get("logprobs") or {}).get("content") or [{}])[0]
        found = {"yes": 0.0, "no": 0.0}
        for one in first.get("top_logprobs") or ():
            word = _word(one["token"])
            if word in found:
                found[word] += math.exp(one["logprob"])
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError):
        raise _Transient("the answer is not a chat completion") from None
    if total := sum(found.values()):
        return found["yes"] / total
    word = _word(text)
    if word not in found:
        raise UserError(
            f"--config.eval.vlm_question: the model answered '{text[:100]}', neither yes nor no; "
            "ask for one of the two"
        )
    return float(word == "yes")


def _word(text: str) -> str:
    """The first word of a text, in small letters."""
    letters = re.search(r"[a-z]+", text.lower())
    return letters[0] if letters else ""


def vlm_reward(settings: Eval) -> YesNo:
    """The question that the settings name. Raises UserError."""
    for name in ("vlm_address", "vlm_model"):
        if not getattr(settings, name):
            raise UserError(f"--config.eval.{name}: needed for the reward vlm")
    if not settings.vlm_address.startswith(("http://", "https://")):
        raise UserError(
            f"--config.eval.vlm_address '{settings.vlm_address}': give a base such as "
            "http://127.0.0.1:8000/v1"
        )
    return YesNo(settings.vlm_address, settings.vlm_model, settings.vlm_question)
