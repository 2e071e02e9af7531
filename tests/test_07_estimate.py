"""Section 7: the local token estimate, its error on samples, and its calibration."""

import base64
import hashlib
import json
import random
import struct
import threading
import time
import unittest

import claude_gateway as gw

PROSE = """\
The ferry left the harbour a little after six, when the lamps along the quay were still burning and the
water lay flat and grey between the piers. Nobody on deck spoke much. A fisherman with a bandaged hand
had put his crates under the stairs, and two students shared a thermos of coffee while they argued, in
low voices, about whether the lighthouse on the northern island had ever been painted red. The captain,
who had made the same crossing for twenty-three years, could have told them; but he was busy with the
radio, which answered him only every third time.

By eight the wind had come round to the west. It was not a strong wind, yet it carried the smell of rain,
and the gulls that had followed the boat from the breakwater turned back one after another. Somebody
asked when we would arrive. "Before lunch," said the captain, "unless the tide has changed its mind." It
was meant as a joke, and those who knew him laughed; the others looked at their watches and then at the
long, unhelpful line of the horizon.

What I remember best is the moment when the engine stopped. There was no alarm and no hurry. The sound we
had ceased to hear an hour before was suddenly missing, and in its place came the small noises of the
sea against the hull. A child wanted to know if we were lost. Her father considered the question with
more care than it deserved, looked up at the sky, and replied that being lost required a destination,
whereas we had merely interrupted our journey. She seemed satisfied with this explanation, and so, to my
own surprise, was I.
"""

CODE = '''\
class RingBuffer:
    """Keeps the last ``capacity`` samples and their running mean."""

    def __init__(self, capacity: int, *, dtype: type = float) -> None:
        if capacity < 1:
            raise ValueError("capacity must be positive, got %r" % (capacity,))
        self._items = [dtype(0)] * capacity
        self._head = 0
        self._size = 0
        self._sum = dtype(0)

    def push(self, sample: float) -> None:
        index = (self._head + self._size) % len(self._items)
        if self._size == len(self._items):
            self._sum -= self._items[self._head]
            self._head = (self._head + 1) % len(self._items)
        else:
            self._size += 1
        self._items[index] = sample
        self._sum += sample

    @property
    def mean(self) -> float:
        return self._sum / self._size if self._size else float("nan")

    def __iter__(self):
        for offset in range(self._size):
            yield self._items[(self._head + offset) % len(self._items)]


def load_readings(path, buffer, skipHeader=True):
    with open(path, newline="", encoding="utf-8") as handle:
        for lineNumber, line in enumerate(handle):
            if skipHeader and lineNumber == 0:
                continue
            fields = line.rstrip("\\n").split(";")
            try:
                buffer.push(float(fields[2].replace(",", ".")))
            except (IndexError, ValueError) as error:
                print(f"{path}:{lineNumber + 1}: {error!s}", file=sys.stderr)
    return buffer.mean


if __name__ == "__main__":
    ring = RingBuffer(capacity=128)
    print("%.3f" % load_readings(sys.argv[1], ring))
'''

DATA = json.dumps({
    "warehouse": "north-7",
    "generatedAt": "2026-03-14T09:26:53Z",
    "orders": [
        {"orderId": 48213, "customer": {"name": "Ines Barroso", "tier": "gold"}, "paid": True,
         "lines": [{"sku": "LMP-0042-B", "quantity": 3, "unitPrice": 18.95, "discount": None},
                   {"sku": "CBL-1180-W", "quantity": 12, "unitPrice": 2.4, "discount": 0.15}]},
        {"orderId": 48214, "customer": {"name": "Tobias Lindqvist", "tier": "basic"}, "paid": False,
         "lines": [{"sku": "SHF-0700-O", "quantity": 1, "unitPrice": 129.0, "discount": None}]},
        {"orderId": 48219, "customer": {"name": "Wanjiru Kamau", "tier": "silver"}, "paid": True,
         "lines": [{"sku": "DSK-2210-G", "quantity": 2, "unitPrice": 310.5, "discount": 0.05},
                   {"sku": "LMP-0042-B", "quantity": 2, "unitPrice": 18.95, "discount": None}]},
    ],
    "totals": {"net": 1020.65, "tax": 214.34, "currency": "EUR", "itemCount": 20},
    "warnings": ["stock of CBL-1180-W below minimum", "address of order 48214 not verified"],
}, indent=2)

CHINESE = """\
清晨的市场还没有完全醒来，卖豆腐的老人已经把摊子摆好。他用一块干净的白布盖住木板，布的四角压着小石头，防止风把它吹走。
附近的孩子们背着书包经过，总要停下来闻一闻热气里的香味，然后才想起快要迟到了。老人从不催他们，只是笑着说：“明天还有。”

雨季到来的时候，河水会漫过低处的石阶。人们把自行车推到桥上，把花盆搬进屋里，像完成一件每年都要做的功课。
没有人抱怨，因为祖辈就是这样生活的。水退了以后，墙上会留下一条浅浅的线，比去年高一点，或者低一点。
我常常觉得，这座小城的历史不是写在书里，而是写在这些线条上面的。

后来我离开家乡，去了很远的地方工作。那里的楼很高，街道很宽，夜里也亮得像白天。我学会了用手机买菜，学会了在地铁里睡着又准时醒来。
可是每当下雨，我还是会想起那块白布，想起石阶上的水声，想起老人说的那句话。明天还有，这大概是我听过的最温柔的承诺。
"""

MARKDOWN = """\
# Tidewatch

[![build](https://img.example.org/tidewatch/main.svg)](https://ci.example.org/tidewatch) `v2.4.1`

**Tidewatch** polls tide gauges and writes what they say to *plain text files*. No database, no daemon.

## Quick start

```sh
pip install tidewatch==2.4.1
tidewatch init --station HAM-03 --every 15m
tidewatch run --output ./levels --verbose
```

## Options

| Option        | Default      | Meaning                                      |
|---------------|--------------|----------------------------------------------|
| `--station`   | *(required)* | Id of the gauge, see `tidewatch stations`    |
| `--every`     | `10m`        | Interval between two readings (`30s`, `2h`)  |
| `--output`    | `./data`     | Folder for the files, one per day            |
| `--max-retry` | `5`          | Attempts before a gap is written             |

## How it works

1. Each reading is fetched over HTTPS; a `304` counts as *unchanged*.
2. The value is checked against the last **three** readings:
   - a jump of more than 0.8 m is marked with `?`
   - a value that stays equal for 6 hours is marked with `=`
3. One line is appended: `2026-03-14T09:15Z  2.37  ok`

> **Note:** gauges in tidal rivers are late by up to 20 minutes. See [the FAQ](docs/faq.md#river-gauges).

---

### Contributing

Please run `make check` before you open a pull request, and add a line to [CHANGELOG.md](CHANGELOG.md).
Bugs are welcome, too: <https://bugs.example.org/tidewatch/new>.
"""

RANDOM_BYTES = b"".join(hashlib.sha256(b"%d" % count).digest() for count in range(45))
BASE64 = base64.b64encode(RANDOM_BYTES).decode("ascii")
BASE64_LINES = base64.encodebytes(RANDOM_BYTES).decode("ascii")
HEX = RANDOM_BYTES.hex()

# name, text, tokens by the npm package @anthropic-ai/tokenizer 0.0.4 (Claude 2, the stand-in
# for the truth), and the bounds of the error in percent: what the 44 texts of the study
# showed (-13..+11, Chinese +27, base64 in lines -23), and 5 points of margin.  Unbroken runs
# have their own rule, made for base64; hex, with 1.7 characters a token, comes out high.
SAMPLES = [
    ("prose", PROSE, 360, -18, 16),
    ("code", CODE, 428, -18, 16),
    ("JSON", DATA, 451, -18, 16),
    ("Chinese", CHINESE, 429, -18, 32),
    ("Markdown", MARKDOWN, 452, -18, 16),
    ("base64", BASE64, 1338, -10, 10),
    ("base64 lines", BASE64_LINES, 1369, -28, 16),
    ("hex", HEX, 1664, -5, 30),
]


def request(*contents, **fields):
    """A parsed request; the contents are turns, the user's first."""
    turns = [{"role": "assistant" if index % 2 else "user", "content": content}
             for index, content in enumerate(contents)]
    value = {"model": "claude-sonnet-4-5", "messages": turns}
    value.update(fields)
    return value


def tokens_of(block, **fields):
    """What one block adds to a request."""
    with_it, without = request([block], **fields), request([], **fields)
    return gw.estimate_tokens(with_it) - gw.estimate_tokens(without)


def image(head):
    """An image block with these first bytes; what follows is noise."""
    data = base64.b64encode(head + RANDOM_BYTES).decode("ascii")
    return {"type": "image", "source": {"type": "base64", "media_type": "image/x", "data": data}}


def png(width, height):
    """The first bytes of a PNG."""
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", width, height) + b"\x08\x06\0\0\0"


def jpeg(width, height, profile_bytes=0):
    """The first bytes of a JPEG, with a colour profile before its frame header."""
    profile = b"\xff\xe2" + struct.pack(">H", profile_bytes + 2) + b"p" * profile_bytes
    frame = b"\xff\xff\xc2" + struct.pack(">HBHHB", 17, 8, height, width, 3)
    return b"\xff\xd8\xff\xe0\0\x10JFIF\0" + b"\0" * 9 + b"\xff\xc4\0\x04\0\0" + profile + frame


def webp(kind, rest):
    """The first bytes of a WebP file."""
    return b"RIFF\0\0\0\0WEBP" + kind + b"\0\0\0\0" + rest


class TextTest(unittest.TestCase):

    def test_error_on_samples_is_within_the_bounds(self):
        print("\n%-14s %6s %9s %8s %7s" % ("text", "chars", "reference", "estimate", "error"))
        for name, text, reference, least, most in SAMPLES:
            estimate = gw.text_weight(text)
            error = 100.0 * (estimate / reference - 1)
            print("%-14s %6d %9d %8.0f %+6.1f%%" % (name, len(text), reference, estimate, error))
            with self.subTest(name):
                self.assertGreater(error, least)
                self.assertLess(error, most)

    def test_weights_of_the_pieces(self):
        table = [
            ("", 0), ("a", 1), ("letter", 1), ("letters", 2), ("abcdefghij", 2), ("abcdefghijk", 3),
            ("getUserName", 3), ("HTTPServer", 2), ("a b", 2), ("a  b", 2.6), ("a\n    b", 2.9),
            ("1", 1), ("12", 1), ("123", 2), ("-----", 0.75), ("->", 1.5), ("中文", 2),
            ("한국", 2.2), ("é", 1.2), ("\U0001f600", 1.2), ("\ud800", 1.2), ("\0", 1.2),
        ]
        for text, weight in table:
            with self.subTest(text):
                self.assertAlmostEqual(gw.text_weight(text), weight)

    def test_an_unbroken_encoded_run_counts_by_its_length(self):
        words = "see this file and that one, "
        for run in (BASE64, HEX, BASE64.replace("+", "-").replace("/", "_")):
            self.assertAlmostEqual(
                gw.text_weight(words + run + " there"),
                gw.text_weight(words) + len(run) / 1.4 + gw.text_weight(" there"))

    def test_a_ruler_or_a_row_of_one_letter_is_no_encoded_run(self):
        for text in ("-" * 500, "a" * 500, "_" * 500, "////" * 100):
            self.assertLess(gw.text_weight(text), 130)

    def test_a_newer_tokenizer_makes_more_of_the_same_text(self):
        factors = [("claude-sonnet-4-6", 1.1), ("claude-opus-4-7", 1.4), ("claude-unheard-of", 1.4),
                   ("gpt-9", 1.0)]
        for model, factor in factors:
            with self.subTest(model):
                estimate = gw.estimate_tokens(request(PROSE, model=model))
                self.assertAlmostEqual(estimate, 7 + factor * gw.text_weight(PROSE), delta=1)

    def test_time_is_linear_for_any_text(self):
        """Printed, not asserted: the machine decides; a square would take a minute for each."""
        texts = [(name, text * (200000 // len(text))) for name, text, _, _, _ in SAMPLES]
        hostile = ["-", "A", "a", "\n ", "AAAAAAa", "-_", "\0", " ", "a" * 199 + " ", "-" * 199 + " "]
        texts += [(ascii(unit)[:12], unit * (200000 // len(unit))) for unit in hostile]
        print()
        for name, text in texts:
            began = time.perf_counter()
            gw.text_weight(text)
            seconds = time.perf_counter() - began
            print("%-14s %7.1f MB/s" % (name, len(text.encode("utf-8")) / seconds / 1e6))


class RequestTest(unittest.TestCase):

    def test_examples_of_the_api(self):
        """From Anthropic's guide to token counting, which shows older models."""
        place = {"type": "string", "description": "The city and state, e.g. San Francisco, CA"}
        weather = {
            "name": "get_weather",
            "description": "Get the current weather in a given location",
            "input_schema": {
                "type": "object",
                "properties": {"location": place},
                "required": ["location"],
            },
        }
        question = "What's the weather like in San Francisco?"
        table = [
            (14, request("Hello, Claude", system="You are a scientist", model="claude-opus-4-1")),
            (403, request(question, tools=[weather], model="claude-opus-4-1")),
        ]
        for real, values in table:
            self.assertAlmostEqual(gw.estimate_tokens(values), real, delta=real * 0.2)

    def test_never_zero(self):
        table = [{}, {"messages": []}, {"messages": None}, request(""), request([]), {"model": ""}]
        for values in table:
            with self.subTest(values):
                self.assertGreater(gw.estimate_tokens(values), 0)

    def test_grows_with_every_message(self):
        contents, before = [], 0
        for content in ("", "a", [], [{"type": "text", "text": ""}], PROSE, [image(png(20, 20))],
                        [{"type": "tool_result", "tool_use_id": "t", "content": ""}], "b"):
            contents.append(content)
            now = gw.estimate_tokens(request(*contents))
            self.assertGreater(now, before)
            before = now

    def test_system_as_text_and_as_blocks_is_the_same(self):
        blocks = [{"type": "text", "text": PROSE, "cache_control": {"type": "ephemeral"}}]
        self.assertEqual(gw.estimate_tokens(request("a", system=PROSE)),
                         gw.estimate_tokens(request("a", system=blocks)))

    def test_a_parsed_document_will_do(self):
        values = request(PROSE, system="be brief", tools=[{"name": "t", "input_schema": {}}])
        document = gw.JsonDocument(json.dumps(values).encode("ascii"))
        self.assertEqual(gw.estimate_tokens(document.values), gw.estimate_tokens(values))

    def test_tools_bring_the_system_prompt_of_their_feature(self):
        table = [
            ("claude-sonnet-5", None, 354), ("claude-sonnet-5", "any", 474),
            ("claude-opus-4-8", "auto", 290), ("claude-opus-4-8", "tool", 410),
            ("claude-opus-4-7", "none", 675), ("claude-opus-4-7", "any", 804),
            ("claude-opus-4-6", "auto", 497), ("claude-sonnet-4-5", "any", 588),
            ("claude-opus-4-1", "auto", 313), ("claude-3-haiku-20240307", "tool", 315),
            ("claude-opus-9", "auto", 354), ("qwen-9", "auto", 0),
        ]
        for model, choice, prompt in table:
            with self.subTest(model=model, choice=choice):
                fields = {"model": model, "tools": [{}]}
                if choice is not None:
                    fields["tool_choice"] = {"type": choice}
                added = gw.estimate_tokens(request("a", **fields))
                added -= gw.estimate_tokens(request("a", model=model))
                self.assertAlmostEqual(added, prompt + 12 + 2, delta=2)

    def test_no_tools_no_prompt(self):
        without = gw.estimate_tokens(request("a"))
        self.assertEqual(gw.estimate_tokens(request("a", tools=[])), without)

    def test_tool_use_and_its_result(self):
        use = {"type": "tool_use", "id": "toolu_1", "name": "grep", "input": {"path": "a"}}
        result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": PROSE}
        blocks = dict(result, content=[{"type": "text", "text": PROSE}])
        with_image = dict(result, content=[image(png(1024, 1024))])
        text = tokens_of({"type": "text", "text": PROSE})
        # "grep" 1, then {"path":"a"} in its pieces: 2 words and 7 marks of 0.75; times 1.1.
        self.assertAlmostEqual(tokens_of(use), 12 + 9, delta=2)
        self.assertAlmostEqual(tokens_of(result), text + 10, delta=1)
        self.assertEqual(tokens_of(result), tokens_of(blocks))
        self.assertAlmostEqual(tokens_of(with_image), 1369 + 10, delta=1)

    def test_thinking_by_its_text_or_by_its_signature(self):
        hidden = {"type": "thinking", "thinking": "", "signature": "s" * 400}
        sealed = {"type": "redacted_thinking", "data": "s" * 400}
        shown = {"type": "thinking", "thinking": PROSE, "signature": "s" * 4000}
        self.assertEqual(tokens_of(hidden), 100)
        self.assertEqual(tokens_of(sealed), 100)
        self.assertEqual(tokens_of(shown), tokens_of({"type": "text", "text": PROSE}))

    def test_search_results(self):
        found = {"type": "web_search_result", "title": "a", "url": "b",
                 "encrypted_content": "e" * 800}
        block = {"type": "web_search_tool_result", "tool_use_id": "t", "content": [found]}
        self.assertAlmostEqual(tokens_of(block), 10 + 200 + 2, delta=2)

    def test_an_unknown_block_counts_by_its_text(self):
        block = {"type": "of_tomorrow", "words": PROSE}
        text = tokens_of({"type": "text", "text": PROSE})
        self.assertGreater(tokens_of(block), text)
        self.assertLess(tokens_of(block), text + 40)


class ImageTest(unittest.TestCase):

    OLD, NEW = "claude-sonnet-4-5", "claude-opus-4-8"

    def test_check_values(self):
        table = [(512, 512, 361, 361), (1024, 1024, 1369, 1369), (1920, 1080, 1560, 2691),
                 (1080, 1920, 1560, 2691), (1, 1, 1, 1), (28, 29, 2, 2), (40000, 1, 56, 92)]
        for width, height, old, new in table:
            with self.subTest(width=width, height=height):
                self.assertEqual(tokens_of(image(png(width, height)), model=self.OLD), old)
                self.assertEqual(tokens_of(image(png(width, height)), model=self.NEW), new)

    def test_no_image_is_above_its_tier(self):
        noise = random.Random(5)
        for _ in range(300):
            width, height = noise.randint(1, 9000), noise.randint(1, 9000)
            for tier in gw.IMAGE_TIERS.values():
                count = gw.image_tokens(width, height, tier)
                self.assertLessEqual(count, tier.max_tokens)
                self.assertGreater(count, 0)
        for tier in gw.IMAGE_TIERS.values():
            self.assertGreater(gw.image_tokens(9000, 9000, tier), tier.max_tokens * 0.95)

    def test_size_from_every_format(self):
        bits = struct.pack("<I", 639 | 479 << 14)
        table = {
            "PNG": png(640, 480),
            "GIF": b"GIF89a" + struct.pack("<HH", 640, 480),
            "JPEG": jpeg(640, 480),
            "JPEG with a profile": jpeg(640, 480, 60000),
            "WebP": webp(b"VP8 ", b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 640, 480)),
            "WebP, lossless": webp(b"VP8L", b"\x2f" + bits),
            "WebP, extended": webp(b"VP8X", b"\0\0\0\0" + b"\x7f\x02\0" + b"\xdf\x01\0"),
        }
        for name, head in table.items():
            with self.subTest(name):
                data = image(head)["source"]["data"]
                self.assertEqual(gw.image_size(data), (640, 480))
                lines = "\n".join(data[at:at + 76] for at in range(0, len(data), 76))
                self.assertEqual(gw.image_size(lines), (640, 480))

    def test_what_is_cut_or_unknown_is_flat(self):
        heads = [b"", b"noise" * 9, png(0, 5), b"\xff\xd8\xff", b"\xff\xd8" + b"\xff" * 500]
        for head in heads:
            data = base64.b64encode(head).decode("ascii")
            self.assertIsNone(gw.image_size(data))
        for head in (png(640, 480), jpeg(640, 480), webp(b"VP8L", b"\x2f" + b"\1" * 9)):
            for end in range(20):
                self.assertIsNone(gw.image_size(base64.b64encode(head[:end]).decode("ascii")))
        url = {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}}
        self.assertEqual(tokens_of(url, model=self.OLD), 1600)
        self.assertEqual(tokens_of(url, model=self.NEW), 4784)
        self.assertEqual(tokens_of({"type": "image"}, model=self.OLD), 1600)


class DocumentTest(unittest.TestCase):

    PAGE_TOKENS = 4100

    def pdf(self, content, **fields):
        data = base64.b64encode(b"%PDF-1.7\n" + content).decode("ascii")
        return dict({"type": "document", "source": {
            "type": "base64", "media_type": "application/pdf", "data": data}}, **fields)

    def test_pages_are_counted_and_page_trees_are_not(self):
        pages = b"<</Type /Pages /Count 3>>" + b"<</Type /Page /Parent 1 0 R>> <</Type/Page>>\n" * 3
        self.assertEqual(tokens_of(self.pdf(pages)), 6 * self.PAGE_TOKENS)

    def test_a_file_that_shows_no_page_counts_by_its_size(self):
        self.assertEqual(tokens_of(self.pdf(b"x")), self.PAGE_TOKENS)
        self.assertEqual(tokens_of(self.pdf(b"x" * 240000)), 5 * self.PAGE_TOKENS)

    def test_no_more_pages_than_the_api_takes(self):
        self.assertEqual(tokens_of(self.pdf(b"/Type /Page " * 5000)), 600 * self.PAGE_TOKENS)

    def test_documents_of_text(self):
        text = tokens_of({"type": "text", "text": PROSE})
        for source in ({"type": "text", "media_type": "text/plain", "data": PROSE},
                       {"type": "content", "content": PROSE},
                       {"type": "content", "content": [{"type": "text", "text": PROSE}]}):
            self.assertEqual(tokens_of({"type": "document", "source": source}), text)

    def test_a_title_counts(self):
        self.assertGreater(tokens_of(self.pdf(b"x", title="A title", context="Of a book")),
                           tokens_of(self.pdf(b"x")))

    def test_a_url_is_a_guess(self):
        url = {"type": "document", "source": {"type": "url", "url": "https://example.org/a.pdf"}}
        self.assertGreaterEqual(tokens_of(url), self.PAGE_TOKENS)


class WrongTypesTest(unittest.TestCase):

    def test_any_value_in_any_place(self):
        noise = random.Random(7)
        leaves = [None, True, -1, 2.5, 10 ** 400, float("nan"), "", "text", "\ud800é", "====",
                  [], {}]
        keys = ["type", "text", "content", "source", "data", "input", "name", "thinking",
                "signature", "title", "role", "messages", "system", "tools", "tool_choice", "model",
                "output_config", "format", "encrypted_content"]
        kinds = sorted(gw.TokenTally.BLOCKS) + ["base64", "url", "content", "any"]

        def one_of(row):  # as noise.choice, in half of the time
            return row[int(noise.random() * len(row))]

        def value(depth):
            draw = noise.random()
            if depth == 0 or draw < 0.25:
                return one_of(leaves)
            if draw < 0.5:
                return [value(depth - 1) for _ in range(int(noise.random() * 4))]
            fields = {one_of(keys): value(depth - 1) for _ in range(int(noise.random() * 6))}
            if noise.random() < 0.8:
                fields["type"] = one_of(kinds)
            return fields

        for _ in range(3000):
            values = {key: value(5) for key in noise.sample(keys, 8)}
            values["messages"] = noise.choice([[{"content": [value(4)]}], value(3)])
            estimate = gw.estimate_tokens(values)
            self.assertIsInstance(estimate, int)
            self.assertGreater(estimate, 0)

    def test_deep_nesting(self):
        block, value = {"type": "text", "text": "a"}, []
        for _ in range(50000):
            block, value = {"type": "tool_result", "content": [block]}, [value]
        shallow = {"type": "tool_result", "content": [{"type": "tool_result", "content": "a"}]}
        for odd in (block, value, shallow):
            self.assertGreater(gw.estimate_tokens(request([odd], odd, system=odd, tools=odd)), 0)

    def test_what_is_no_json_counts_nothing(self):
        self.assertEqual(tokens_of({"type": "text", "text": object()}), 0)


class ModelGenerationTest(unittest.TestCase):

    def test_table(self):
        table = {
            "claude-opus-4-5-20251101": (4, 5),
            "claude-3-7-sonnet-20250219": (3, 7),
            "claude-3-haiku-20240307": (3, 0),
            "claude-3-5-sonnet-latest": (3, 5),
            "claude-sonnet-4-20250514": (4, 0),
            "claude-sonnet-4@20250514": (4, 0),
            "claude-opus-4-1": (4, 1),
            "us.anthropic.claude-sonnet-4-5-v1:0": (4, 5),
            "global.anthropic.claude-haiku-4-5-20251001-v1:0": (4, 5),
            "anthropic.claude-opus-4-6-v1": (4, 6),
            "anthropic/claude-opus-5.5": (5, 5),
            "anthropic/claude-3.7-sonnet:thinking": (3, 7),
            "claude-4.5-sonnet": (4, 5),
            "claude-haiku-5-5@2026": (5, 5),
            "claude-fable-5-2[1m]": (5, 2),
            "claude-mythos-5": (5, 0),
            "Claude-Sonnet-5": (5, 0),
            "claude-2.1": (2, 1),
            "claude-v2": (2, 0),
            "claude-instant-1.2": (1, 2),
            "claude-demo-1": (99, 0),
            "claude-opus-latest": (99, 0),
            "claude": (99, 0),
            "claudette-3": None,
            "gpt-9": None,
            "deepseek-v4": None,
            "": None,
        }
        for model, generation in table.items():
            with self.subTest(model):
                self.assertEqual(gw.model_generation(model), generation)


class TokenCalibrationTest(unittest.TestCase):

    def test_an_unseen_model_keeps_its_estimate(self):
        self.assertEqual(gw.TokenCalibration().apply("a", 1234), 1234)

    def test_follows_real_usage_from_either_side(self):
        for ratio in (0.7, 1.0, 1.3, 1.9):
            calibration = gw.TokenCalibration()
            for size in (100, 5000, 90000) * 8:
                calibration.observe("a", size, round(size * ratio))
            self.assertAlmostEqual(calibration.apply("a", 10000), 10000 * ratio, delta=100)
            self.assertEqual(calibration.apply("b", 10000), 10000)

    def test_one_odd_request_does_not_bend_it(self):
        calibration = gw.TokenCalibration()
        for _ in range(20):
            calibration.observe("a", 1000, 1000)
        calibration.observe("a", 10, 1000000)
        self.assertLessEqual(calibration.apply("a", 1000), 1201)

    def test_is_clamped(self):
        calibration = gw.TokenCalibration()
        for _ in range(100):
            calibration.observe("more", 1, 1000000)
            calibration.observe("less", 1000000, 1)
        self.assertEqual(calibration.apply("more", 1000), 2000)
        self.assertAlmostEqual(calibration.apply("less", 1000), 500, delta=5)

    def test_what_counts_nothing_teaches_nothing(self):
        calibration = gw.TokenCalibration()
        for estimated, real in ((0, 5), (5, 0), (-1, 5), (5, -1)):
            calibration.observe("a", estimated, real)
        self.assertEqual(calibration.apply("a", 1000), 1000)

    def test_never_zero(self):
        calibration = gw.TokenCalibration()
        for _ in range(50):
            calibration.observe("a", 1000, 1)
        self.assertEqual(calibration.apply("a", 1), 1)

    def test_the_first_ones_of_a_model_are_due_at_once_then_one_after_a_pause(self):
        calibration, now = gw.TokenCalibration(), 100.0
        for count in range(1, 3 * calibration.FIRST_COUNT):
            calibration.observe("a", 100, 100, now)
            first = count < calibration.FIRST_COUNT
            self.assertEqual(calibration.due, now if first else now + calibration.PAUSE_SECONDS)
        calibration.observe("b", 100, 100, now)
        self.assertEqual(calibration.due, now)

    def test_the_model_observed_longest_ago_is_dropped(self):
        calibration = gw.TokenCalibration()
        for count in range(gw.MAX_CALIBRATED_MODELS):
            calibration.observe("m%d" % count, 100, 200)
        calibration.observe("m0", 100, 200)
        calibration.observe("one more", 100, 200)
        self.assertEqual(calibration.apply("m1", 100), 100)
        for model in ("m0", "m2", "one more"):
            self.assertGreater(calibration.apply(model, 100), 100)

    def test_from_many_threads(self):
        calibration = gw.TokenCalibration()

        def work(number):
            for count in range(300):
                calibration.observe("m%d" % ((count + number) % 150), 100, 130)
                calibration.apply("m%d" % count, 100)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertIn(calibration.apply("m149", 100), range(100, 131))


if __name__ == "__main__":
    unittest.main()
