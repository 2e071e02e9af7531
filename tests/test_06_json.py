"""Section 6: JSON documents keep every byte that an edit does not mean."""

import itertools
import json
import time
import tracemalloc
import unittest
import unittest.mock

import claude_gateway as gw

DEEP = 100000


class ParseTest(unittest.TestCase):

    def test_values_and_their_places(self):
        text = ' { "a" : "ä𝄞" ,"b":[1, {"c":2}],\n"d":null, "é" :1,"\\u00e9\\n鍵":"✓", "":-1 } '
        document = gw.JsonDocument(text.encode("utf-8"))
        parts, end = document.parts(gw.byte_text(document.data))
        self.assertEqual(
            [(key, document.data[start:end].decode("utf-8")) for key, start, end in parts],
            [("a", '"ä𝄞"'), ("b", '[1, {"c":2}]'), ("d", "null"), ("é", "1"), ("é\n鍵", '"✓"'),
             ("", "-1")])
        self.assertEqual(document.data[end:], b" ")
        self.assertEqual(document.values, json.loads(text))

    def test_places_in_bytes(self):
        text = "aé✓😀" * 3 + "b" * 5 + "✓é"
        expected = [len(text[:place].encode("utf-8")) for place in range(len(text) + 1)]
        for size in range(4, 40):
            with unittest.mock.patch.object(gw, "READ_BYTES", size):
                data = text.encode("utf-8")
                self.assertEqual(gw.byte_places(data, range(len(text) + 1)), expected)
                self.assertEqual(gw.byte_places(data, [3, 3, 17]), [expected[3]] * 2 + [expected[17]])
        self.assertEqual(gw.byte_places(b"ascii", [0, 5]), [0, 5])

    def test_keys_keep_their_order(self):
        self.assertEqual(list(gw.JsonDocument(b'{"z":1,"a":2,"":3}').values), ["z", "a", ""])

    def test_data_is_what_came(self):
        for data in (b"{}", b" {} ", b'\t\r\n{"a":1}\n\n', b'{"\\u0061":1.0}'):
            with self.subTest(data=data):
                self.assertEqual(gw.JsonDocument(data).data, data)

    def test_an_empty_object_is_a_document(self):
        for data in (b"{}", b"{ }", b"\n{\t\r\n}\n"):
            with self.subTest(data=data):
                self.assertEqual(gw.JsonDocument(data).values, {})

    def test_every_kind_of_value(self):
        values = ['""', '"a\\"b\\\\"', "0", "-0", "-1.5e+10", "1E2", "true", "false", "null", "[]",
                  "{}", '[{"a":[[]]}]', '{"a":1,"a":2}', "1" * 20, '"}"', '",\\"b\\":1"']
        for value in values:
            with self.subTest(value):
                document = gw.JsonDocument(('{"k":%s}' % value).encode("ascii"))
                self.assertEqual(document.values["k"], json.loads(value))

    def test_agrees_with_the_library_wherever_a_byte_is_lost(self):
        data = b'{"a" : [1,{"b":"c\\n"}] , "d":-1.5e3,"e":true, "f":"\xc3\xa4"}'
        for at in range(len(data)):
            for byte in (b"", b" ", b'"', b",", b"}", b"{", b"\\", b"\x00", b"\xff", b"1"):
                broken = data[:at] + byte + data[at + 1:]
                try:
                    expected = json.loads(broken.decode("utf-8"))
                except ValueError:
                    self.assertRaises(ValueError, gw.JsonDocument, broken)
                else:
                    document = gw.JsonDocument(broken)
                    self.assertEqual(document.values, expected)


class RefusedTest(unittest.TestCase):
    """What is a 400: ValueError, and never another exception."""

    def assert_refused(self, data):
        with self.assertRaises(ValueError):
            gw.JsonDocument(data)

    def test_what_is_no_json_object(self):
        table = {
            "nothing": b"",
            "blanks": b" \n",
            "list": b"[]",
            "list of objects": b'[{"a":1}]',
            "string": b'"a"',
            "number": b"1",
            "null": b"null",
            "true": b"true",
            "half": b'{"a":1',
            "half a key": b'{"a',
            "half a value": b'{"a":"b',
            "key alone": b'{"a"}',
            "no value": b'{"a":}',
            "no colon": b'{"a" 1}',
            "brace alone": b"{",
            "no comma": b'{"a":1 "b":2}',
            "comma alone": b"{,}",
            "comma first": b'{,"a":1}',
            "comma last": b'{"a":1,}',
            "two commas": b'{"a":1,,"b":2}',
            "key without quotes": b"{a:1}",
            "key in single quotes": b"{'a':1}",
            "number as a key": b"{1:1}",
            "comment": b'{"a":1 /* b */}',
            "other blanks": b'{"a":\x0b1}',
            "no-break space": '{"a":\xa01}'.encode("utf-8"),
            "line break in a string": b'{"a":"b\nc"}',
            "NUL in a string": b'{"a":"\x00"}',
            "half an escape": b'{"a":"\\u12"}',
            "unknown escape": b'{"a":"\\x41"}',
            "form data": b"model=a&messages=b",
        }
        for name, data in table.items():
            with self.subTest(name):
                self.assert_refused(data)

    def test_trailing_garbage(self):
        for tail in (b"x", b"{}", b"}", b",", b"\x00", b'\n{"a":2}', b" //", b"\xef\xbb\xbf"):
            with self.subTest(tail=tail):
                self.assert_refused(b'{"a":1}' + tail)

    def test_numerals_that_are_none(self):
        for numeral in (b"NaN", b"Infinity", b"-Infinity", b"+1", b"01", b"1.", b".5", b"0x1",
                        b"1_0", b"1e", b"--1", "٣".encode("utf-8")):
            with self.subTest(numeral=numeral):
                self.assert_refused(b'{"a":' + numeral + b"}")
                self.assert_refused(b'{"a":[' + numeral + b"]}")

    def test_duplicate_keys_at_the_top(self):
        table = {
            "alike": b'{"model":"a","model":"a"}',
            "with others between": b'{"model":"a","b":1,"model":"c"}',
            "escaped": b'{"model":"a","\\u006dodel":"b"}',
            "empty": b'{"":1,"":2}',
            "lone surrogates": b'{"\\ud800":1,"\\uD800":2}',
        }
        for name, data in table.items():
            with self.subTest(name):
                self.assert_refused(data)

    def test_keys_that_only_look_alike_are_two(self):
        data = '{"model":1,"Model":2,"model ":3,"ä":4,"a\u0308":5}'.encode("utf-8")
        self.assertEqual(len(gw.JsonDocument(data).values), 5)

    def test_duplicate_keys_below_are_the_upstreams_to_judge(self):
        gw.JsonDocument(b'{"metadata":{"a":1,"a":2}}')

    def test_what_is_not_utf_8(self):
        text = '{"a":"ä"}'
        table = {
            "Latin-1": text.encode("latin-1"),
            "byte order mark": b"\xef\xbb\xbf" + text.encode("utf-8"),
            "UTF-16 with its mark": text.encode("utf-16"),
            "UTF-16LE": text.encode("utf-16-le"),
            "UTF-16BE": text.encode("utf-16-be"),
            "UTF-32": text.encode("utf-32"),
            "UTF-32LE": text.encode("utf-32-le"),
            "encoded surrogate": b'{"a":"\xed\xa0\x80"}',
            "overlong": b'{"a":"\xc0\xaf"}',
            "cut character": b'{"a":"\xc3"}',
            "above Unicode": b'{"a":"\xf4\x90\x80\x80"}',
            "in a key": b'{"\xff":1}',
            "gzip": b"\x1f\x8b\x08\x00",
        }
        for name, data in table.items():
            with self.subTest(name):
                self.assert_refused(data)

    def test_more_digits_than_the_bound(self):
        digits = "1" * (gw.MAX_NUMERAL_DIGITS + 1)
        for numeral in (digits, "-" + digits, "0." + digits, digits + ".5", digits + "e5",
                        "1" * 1000000):
            with self.subTest(numeral[:3], length=len(numeral)):
                self.assert_refused(('{"a":%s}' % numeral).encode("ascii"))
                self.assert_refused(('{"a":{"b":[%s]}}' % numeral).encode("ascii"))

    def test_as_many_digits_as_the_bound(self):
        """Digits are counted: a sign, a point and an exponent's letter are none."""
        digits = "1" * gw.MAX_NUMERAL_DIGITS
        for numeral in (digits, "-" + digits, digits[:-1] + ".5", "-" + digits[:-2] + ".5e5"):
            with self.subTest(numeral[:2], length=len(numeral)):
                data = ('{"a":%s}' % numeral).encode("ascii")
                self.assertEqual(gw.JsonDocument(data).data, data)

    def test_deep_nesting(self):
        table = {
            "lists": b'{"a":' + b"[" * DEEP + b"]" * DEEP + b"}",
            "objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
            "both": b'{"a":' + b'[{"b":' * DEEP + b"1" + b"}]" * DEEP + b"}",
            "without an end": b'{"a":' + b"[" * DEEP,
            "below another key": b'{"a":1,"b":{"c":' + b"[" * DEEP + b"]" * DEEP + b"}}",
        }
        for name, data in table.items():
            with self.subTest(name):
                self.assert_refused(data)

    def test_nesting_as_people_use_it_passes(self):
        data = b'{"a":' + b'[{"b":' * 50 + b"1" + b"}]" * 50 + b"}"
        self.assertEqual(gw.JsonDocument(data).data, data)

    def test_says_what_is_wrong(self):
        table = {
            b"\xff": "UTF-8",
            b"[]": "not a JSON object",
            b'{"a":1}x': "follows",
            b'{"model":1,"model":2}': '"model" stands twice',
            b'{"a":NaN}': "NaN is not JSON",
            b'{"a":' + b"[" * DEEP: "deep",
            b'{"a":' + b"1" * 5000 + b"}": "4300 digits",
        }
        for data, word in table.items():
            with self.subTest(data=data[:20]):
                self.assertRaisesRegex(ValueError, word, gw.JsonDocument, data)


# Texts for the window: keys, signs of one to four bytes, numerals, nesting and space.
WINDOWED = [
    '{"model":"m","messages":[{"role":"user","content":"a✓é😀\\n"},{"n":[1,[2,{}]]}],"x":1}',
    '{"a":[12345,6.75e10,true,null,"",[]],"b":[],"c":{"d":[1, 2]},"e":-7}',
    '{ "a" : [ 1 , "two" , { "3" : 4 } ] , "b" : "é" } \n',
    '{"a":1234567890}',
]
# What the window leaves to who reads all, for its words or because it is odd.
LEFT_ALONE = [
    "", "{}", " {\"a\":1}", "[1]", '{"a":[1,]}', '{"a":[1 2]}', '{"a":[1}', '{"a":tru}', '{"a":1} x',
    '{"a":1,}', '{"\\u0061":1}', '{"a":[1]', '{"a":"', '{"a":NaN}', '{"a":[NaN]}',
]


class WindowTest(unittest.TestCase):

    def windows(self):
        for size in range(1, 60):
            with unittest.mock.patch.multiple(gw, JSON_WINDOW_BYTES=size, JSON_EDGE_CHARS=20,
                                              JSON_WINDOW_LOOKS=9):
                yield size

    def test_gives_what_reading_all_gives(self):
        for text in WINDOWED:
            data = text.encode("utf-8")
            for size in self.windows():
                with self.subTest(text=text, size=size):
                    self.assertEqual(gw.large_json_object(data), gw.whole_json_object(data))

    def test_what_is_odd_or_broken_is_left_to_who_reads_all(self):
        for text in LEFT_ALONE:
            for size in self.windows():
                with self.subTest(text=text, size=size):
                    self.assertIsNone(gw.large_json_object(text.encode("utf-8")))

    def test_a_value_of_many_windows_is_left_to_who_reads_all(self):
        """Else each of its windows would be read anew, and all of it once more where it is broken."""
        with unittest.mock.patch.object(gw, "JSON_WINDOW_BYTES", 10):
            for size in (400, 4000):
                data = b'{"a":["%s"]}' % (b"x" * size)
                with unittest.mock.patch.object(gw, "JSON_EDGE_CHARS", 5):
                    self.assertIsNone(gw.large_json_object(data))

    def test_of_many_small_values_few_are_read(self):
        """The window takes some steps of Python's a value, five times the time for numbers."""
        numbers, words = b"0," * 100000, b'"%b",' % (b"some words " * 20) * 5000
        lists = b"[%b0]," % (b"0," * gw.WINDOW_VALUES)
        table = [(b'{"a":[%b0]}' % numbers, gw.WINDOW_VALUES),
                 (b'{"a":[%b0]}' % (words + numbers), 20000),
                 (b"{%b}" % b",".join(b'"%d":%b' % (at, lists[:-1]) for at in range(100)), 2048),
                 (b"{%b}" % b",".join(b'"%d":0' % at for at in range(100000)), gw.WINDOW_VALUES)]
        for data, most in table:
            looks = []
            with self.subTest(data=data[:20]), unittest.mock.patch.object(
                    gw, "scan_json", lambda text, at: looks.append(at) or gw.JSON_DECODER.scan_once(
                        text, at)):
                found = gw.large_json_object(data)
            self.assertTrue(found is None)  # else all of it would be printed
            self.assertLessEqual(len(looks), most)
        found = gw.large_json_object(b'{"a":[%b%b0]}' % (words, numbers[:2000]))
        self.assertEqual(len(found[0]["a"]), 6001)

    def test_what_is_read_through_it(self):
        """What is larger, and of what takes more than a byte a character already less."""
        wide, large = gw.WIDE_JSON_BYTES, gw.LARGE_JSON_BYTES
        for sign, size, calls in (("✓", wide, 0), ("✓", wide + 1, 1), (".", wide + 1, 0),
                                  (".", large, 0), (".", large + 1, 1)):
            text = '{"a":"%s"}' % sign
            data = text.replace(":", ":" + " " * (size - len(text.encode("utf-8")))).encode("utf-8")
            with unittest.mock.patch.object(gw, "large_json_object", return_value=None) as read:
                gw.JsonDocument(data)
            self.assertEqual((sign, len(data), read.call_count), (sign, size, calls))

    def test_a_cut_sign_is_no_utf_8(self):
        for size in self.windows():
            self.assertIsNone(gw.large_json_object('{"a":["✓"]}'.encode("utf-8")[:-4] + b'"]}'))

    def wide(self, lines):
        """A conversation of about so many lines, a sign of which makes two bytes of each character."""
        line = "x = 'a line of somebody\'s program' # ✓\n"
        return json.dumps({"model": "m", "messages": [
            {"role": "user", "content": [{"type": "text", "text": line * 100}]}
            for _ in range(lines // 100)]}, ensure_ascii=False, separators=(",", ":")).encode("utf-8")

    def test_a_document_takes_twice_its_size_besides_its_own(self):
        """Its text as a whole would be two bytes a character for one sign, and then its values."""
        for lines, least, most in ((25000, gw.WIDE_JSON_BYTES, 2.5), (75000, gw.LARGE_JSON_BYTES, 2.4)):
            data = self.wide(lines)
            self.assertGreater(len(data), least)
            with self.subTest(size=len(data)):
                peak, document = peak_of(lambda data=data: gw.JsonDocument(data))
                self.assertEqual(len(document.values["messages"]), lines // 100)
                self.assertLess(peak / len(data), most)

    def test_an_edit_takes_its_size_besides(self):
        """What is kept is copied once, and no text of two bytes a character is made."""
        data = self.wide(100000)
        document = gw.JsonDocument(data)
        peak, edited = peak_of(lambda: document.spelled(dict(document.values, model="other")))
        self.assertEqual(edited, data.replace(b'"m"', b'"other"', 1))
        self.assertLess(peak / len(data), 1.2)
        messages = list(document.values["messages"])
        block = messages[7]["content"][0]
        messages[7] = gw.edited(messages[7], content=[gw.edited(block, text="short")])
        peak, edited = peak_of(
            lambda: document.spelled(dict(document.values, messages=messages)))
        old = json.dumps(block["text"], ensure_ascii=False).encode("utf-8")
        self.assertEqual(len(edited), len(data) - len(old) + len(b'"short"'))
        self.assertEqual(json.loads(edited.decode("utf-8")),
                         dict(document.values, messages=messages))
        self.assertLess(peak / len(data), 1.5)


def peak_of(call):
    """How many bytes a call takes at most, and what it gives."""
    tracemalloc.start()
    try:
        given = call()
        return tracemalloc.get_traced_memory()[1], given
    finally:
        tracemalloc.stop()


class TimeTest(unittest.TestCase):
    """Eight times the document, eight times the time; quadratic work would be 64 times."""

    def ratio(self, call):
        best = []
        for count in (2000, 16000):
            data = call(count)
            seconds = []
            for _ in range(3):
                began = time.process_time()
                try:
                    document = gw.JsonDocument(data)
                    document.spelled(dict(document.values, z=1))
                except ValueError as error:
                    self.assertIn("stands twice", str(error))
                seconds.append(time.process_time() - began)
            best.append(min(seconds))
        return best[1] / best[0]

    def test_a_key_that_stands_twice_among_many(self):
        self.assertLess(self.ratio(lambda count: b"{%b}" % b",".join(
            [b'"%x":1' % at for at in range(count)] + [b'"x":1,"x":2'])), 25)

    def test_an_edit_beside_many_keys(self):
        with unittest.mock.patch.object(gw, "READ_BYTES", 10**7):
            self.assertLess(self.ratio(lambda count: b"{%b}" % b",".join(
                '"✓%x":1'.encode("utf-8") % at for at in range(count))), 25)


class SpelledTest(unittest.TestCase):
    """Edits beneath the top; section 8's tests have its rules'."""

    TEXT = ('{"a✓": [ {"é":1.50, "\\u00e9✓" : [0.10,"ü"] ,"n":{"鍵":[],"k":1e2}},{"é":2},\t{"x":"\\n"}, 7] ,'
            '"m":"ä"}')

    def spelled(self, make):
        document = gw.JsonDocument(self.TEXT.encode("utf-8"))
        return document.spelled(make(document.values)).decode("utf-8")

    def test_members_beside_an_edit_keep_their_text_whatever_their_keys_are(self):
        first = '{"é":1.50, "\\u00e9✓" : [0.10,"ü"] ,"n":{"鍵":[],"k":1e2}}'
        table = [
            (lambda old: gw.edited(old, z="z✓"), first[:-1] + ',"z":"z\\u2713"}'),
            (lambda old: gw.without(old, "é"), first.replace('"é":1.50,', "")),
            (lambda old: gw.without(old, "é✓"), first.replace(' "\\u00e9✓" : [0.10,"ü"] ,', "")),
            (lambda old: gw.without(old, "é", "é✓", "n"), "{}"),
            (lambda old: gw.edited(old, n=gw.edited(old["n"], 鍵=None)),
             first.replace("[],", "null,")),
            (lambda old: {"é": old["n"], "f": old["é✓"]},
             '{"\\u00e9":{"鍵":[],"k":1e2},"f":[0.10,"ü"]}'),
        ]
        for edit, expected in table:
            with self.subTest(expected):
                found = self.spelled(
                    lambda old: dict(old, **{"a✓": [edit(old["a✓"][0]), *old["a✓"][1:]]}))
                self.assertEqual(found, self.TEXT.replace(first, expected).replace(
                    "[ {", "[{").replace("\t", "").replace(", 7]", ",7]"))

    def test_neighbours(self):
        """What stands side by side in the document goes as one piece, and in no other order."""
        data = b'{"a":[{"n":0},{"n":1},{"n":2} ,{"n":3},{"n":4}]}'
        document = gw.JsonDocument(data)
        own = document.values["a"]
        for order in itertools.product(range(5), repeat=3):
            kept = [own[at] for at in order]
            expected = ",".join('{"n":%d}' % at for at in order)
            found = document.spelled(dict(document.values, a=kept))
            self.assertEqual(found.decode("ascii"), '{"a":[%s]}' % expected)
            found = document.spelled(dict(document.values, b={str(at): own[at] for at in order}, a=[]))
            self.assertEqual(json.loads(found.decode("ascii")),
                             {"a": [], "b": {str(at): {"n": at} for at in order}})

    def test_an_object_of_two_neighbours(self):
        document = gw.JsonDocument(b'{"a":[{"n":0},{"n":1}]}')
        zero, one = document.values["a"]
        found = document.spelled({"a": [{"x": zero, "y": one}, zero, one]})
        self.assertEqual(found, b'{"a":[{"x":{"n":0},"y":{"n":1}},{"n":0},{"n":1}]}')


class LoneSurrogateTest(unittest.TestCase):

    def test_pass_as_they_came(self):
        data = b'{"a":"\\ud800","\\uDFFF":"\\udfff\\ud800","b":"\\ud83d\\ude00"}'
        document = gw.JsonDocument(data)
        self.assertEqual((document.data, document.values["a"]), (data, "\ud800"))

    def test_beside_an_edit_keep_their_bytes(self):
        document = gw.JsonDocument(b'{"a":"\\uD800","m":"x"}')
        self.assertEqual(with_value(document, "m", "y").data, b'{"a":"\\uD800","m":"y"}')

    def test_in_an_edit_are_escaped(self):
        document = with_value(gw.JsonDocument(b'{"m":"x"}'), "m", "\ud800")
        self.assertEqual((document.data, document.values["m"]), (b'{"m":"\\ud800"}', "\ud800"))


def with_value(document, key, value):
    """The document with another value for a key, spelled and parsed again."""
    return gw.JsonDocument(document.spelled(dict(document.values, **{key: value})))


class WithValueTest(unittest.TestCase):

    def test_everything_else_keeps_its_bytes(self):
        # %s is where the value stands, which is edited.
        templates = {
            "spacing": '\n{ "a" :\t1 ,\r\n "m" :  %s  , "z" : [ ] }\n ',
            "numbers": '{"a":0.10,"b":1.0,"c":1e2,"d":1E+2,"e":-0,"f":-0.0,"m":%s,"g":9%s}'
                       % ("%s", "9" * 40),
            "a number above doubles": '{"a":1e999,"m":%s}',
            "escapes": '{"a":"\\u0061\\/\\ud83d\\ude00\\n","m":%s,"\\u0062":"\\u00E4"}',
            "Unicode": '{"ä":"𝄞\u2028\ufeff","m":%s,"b":"鍵\x7f"}',
            "order": '{"z":1,"m":%s,"a":2,"":3}',
            "nested keys of that name": '{"x":{"m":"old"},"m":%s,"y":[{"m":"old"}]}',
            "text that looks like it": '{"x":"\\"m\\":\\"old\\"","m":%s}',
            "nested duplicates": '{"x":{"a":1,"a":2},"m":%s}',
            "first": '{"m":%s,"a":1}',
            "last": '{"a":1,"m":%s}',
            "alone": '{"m":%s}',
            "an escaped key": '{"\\u006d":%s,"a":1}',
        }
        for name, template in templates.items():
            for old in ('"old"', "null", "1.50", '[1, {"m":"x"}]', '"ä𝄞\\u0000"'):
                with self.subTest(name, old=old):
                    data = (template.replace("%s", old)).encode("utf-8")
                    edited = with_value(gw.JsonDocument(data), "m", "new")
                    self.assertEqual(edited.data, template.replace("%s", '"new"').encode("utf-8"))
                    self.assertEqual(edited.values["m"], "new")

    def test_the_document_itself_does_not_change(self):
        data = b'{"m": "a", "n": 1}'
        document = gw.JsonDocument(data)
        with_value(document, "m", "much longer than before")
        self.assertEqual((document.data, document.values["m"]), (data, "a"))

    def test_an_equal_value_gives_the_same_bytes(self):
        document = gw.JsonDocument(b'{"m":"\\u0061","n":[1, 2],"o":1.0}')
        for key, value in (("m", "a"), ("n", document.values["n"]), ("o", 1.0)):
            with self.subTest(key):
                self.assertEqual(document.spelled(dict(document.values, **{key: value})), document.data)

    def test_a_value_of_another_type_is_another_value(self):
        table = [(b'{"m":1}', True, b'{"m":true}'), (b'{"m":1}', 1.0, b'{"m":1.0}'),
                 (b'{"m":false}', 0, b'{"m":0}'), (b'{"m":0}', None, b'{"m":null}')]
        for data, value, expected in table:
            with self.subTest(data=data, value=value):
                self.assertEqual(with_value(gw.JsonDocument(data), "m", value).data, expected)

    def test_edits_can_follow_each_other(self):
        document = gw.JsonDocument(b'{"a": "1" ,"b":2, "c":"3"}')
        for value in ("long" * 10, "", "ä", '"}{', "1"):
            document = with_value(with_value(document, "a", value), "c", {"d": value})
            self.assertEqual((document.values["a"], document.values["b"], document.values["c"]),
                             (value, 2, {"d": value}))
            self.assertEqual(json.loads(document.data.decode("utf-8"))["c"], {"d": value})
        self.assertEqual(document.data, b'{"a": "1" ,"b":2, "c":{"d":"1"}}')


if __name__ == "__main__":
    unittest.main()
