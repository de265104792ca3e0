"""Goes on from a PROMPT, word after word, by which words follow which in a short text.

Always the same after the same prompt. Tokens are two and three bytes by turns, so that a character
may be split over two responses; the last one ends with a whole character. For a MAX_TOKENS below
zero, so many tokens come and then an error.
"""

import asyncio
import itertools
import threading

import numpy as np
import triton_python_backend_utils as pb_utils

TEXT = (
    "the cat sings of the river and the river sings of the sea ☕ 猫は海の歌を歌う and the sea "
    "grüßt den Fluß , der Fluß grüßt the cat 🎵 and 海 is the end of the song of the river ☕ ."
)
WORDS = TEXT.split()
FOLLOWERS = {word: [] for word in WORDS}
for before, after in itertools.pairwise([*WORDS, WORDS[0]]):
    FOLLOWERS[before].append(after)


def words(prompt):
    """Yield words without end: each time a word comes, its next follower."""
    last = (prompt.split() or [""])[-1]
    word = last if last in FOLLOWERS else WORDS[sum(prompt.encode()) % len(WORDS)]
    turns = {word: itertools.cycle(after) for word, after in FOLLOWERS.items()}
    while True:
        word = next(turns[word])
        yield word


def tokens(prompt, count):
    """Yield so many tokens, as bytes."""
    source = itertools.chain.from_iterable(f" {word}".encode() for word in words(prompt))
    for index in range(count - 1):
        yield bytes(itertools.islice(source, 3 if index % 2 else 2))
    if count:
        token = bytes(itertools.islice(source, 2))
        while not complete(token):
            token += bytes([next(source)])
        yield token


def complete(token):
    """Return whether the last character that begins in a token ends in it."""
    begins = [place for place, byte in enumerate(token) if byte & 0xC0 != 0x80]
    if not begins:
        return False
    try:
        token[begins[-1] :].decode()
    except UnicodeDecodeError:
        return False
    return True


def option(request, name, default):
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return default if tensor is None else tensor.as_numpy().item()


class TritonPythonModel:
    def initialize(self, args):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

    def execute(self, requests):
        for request in requests:
            asyncio.run_coroutine_threadsafe(
                self.answer(
                    request.get_response_sender(),
                    option(request, "PROMPT", b"").decode(errors="replace"),
                    option(request, "MAX_TOKENS", 16),
                    option(request, "DELAY_MS", 0.0) / 1000,
                    stream=option(request, "STREAM", False),
                ),
                self.loop,
            )

    async def answer(self, sender, prompt, count, delay_s, *, stream):
        if stream:
            for token in tokens(prompt, abs(count)):
                await asyncio.sleep(delay_s)
                self.send(sender, token)
        else:
            await asyncio.sleep(delay_s * abs(count))
            self.send(sender, b"".join(tokens(prompt, abs(count))))
        if count < 0:
            error = pb_utils.TritonError(f"out of words after {-count} tokens")
            sender.send(pb_utils.InferenceResponse([], error))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def send(self, sender, text):
        tensor = pb_utils.Tensor("TEXT", np.array([text], np.object_))
        sender.send(pb_utils.InferenceResponse([tensor]))

    def finalize(self):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
