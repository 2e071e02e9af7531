"""Section 19: the page is one constant that can reach nothing, and sets what it is told as text."""

import base64
import hashlib
import re
import unittest
from html.parser import HTMLParser

import claude_gateway as gw

VOID = frozenset(["meta", "link", "input", "br"])


class Parsed(HTMLParser):
    """The page's elements, ids and what stands within style and script."""

    def __init__(self):
        super().__init__()
        self.elements, self.open, self.texts = [], [], {}
        self.feed(gw.DASHBOARD)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("style", "script"):
            self.texts.setdefault(self.open[-1], []).append(data)


class PageTest(unittest.TestCase):

    def setUp(self):
        self.page = gw.dashboard_page()
        self.policy = dict(part.split(" ", 1) for part in dict(self.page.headers)[
            "Content-Security-Policy"].split("; "))
        self.parsed = Parsed()

    def test_every_element_is_closed(self):
        self.assertEqual(self.parsed.open, [])

    def test_hashes_are_those_of_the_only_script_and_the_only_style(self):
        for tag in ("script", "style"):
            (text,) = [text.encode("utf-8") for text in ["".join(self.parsed.texts[tag])]]
            digest = base64.b64encode(hashlib.sha256(text).digest()).decode("ascii")
            self.assertEqual(self.policy[tag + "-src"], "'sha256-%s'" % digest)
            self.assertEqual([name for name, _ in self.parsed.elements].count(tag), 1)

    def test_policy_lets_nothing_else(self):
        self.assertEqual({name: value for name, value in self.policy.items()
                          if not value.startswith("'sha256-")}, {
            "default-src": "'none'", "img-src": "data:", "connect-src": "'self'",
            "base-uri": "'none'", "form-action": "'none'", "frame-ancestors": "'none'"})
        self.assertEqual(dict(self.page.headers)["Referrer-Policy"], "no-referrer")

    def test_no_address_of_elsewhere(self):
        # The name of SVG's elements; nothing is asked there.
        text = gw.DASHBOARD.replace("http://www.w3.org/2000/svg", "")
        self.assertEqual(re.findall(r"\b[a-z]+://[^\s]*|url\(|@import", text), [])
        for _, attributes in self.parsed.elements:
            for value in (attributes.get("src"), attributes.get("href")):
                self.assertRegex(value or "#", r"(?!//)[a-z#]")

    def test_nothing_is_set_as_markup(self):
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(",
                     "Function(", "DOMParser", "createContextualFragment", "srcdoc", "localStorage",
                     "document.cookie", "setInterval"):
            with self.subTest(word):
                self.assertNotIn(word, gw.DASHBOARD)

    def test_a_key_that_no_header_can_hold_is_a_wrong_key(self):
        """fetch would throw, and the page say that the gateway does not answer."""
        self.assertRegex(gw.DASHBOARD, r"async function ask\(path\) \{\n +//.*\n"
                         r" +if \(/\[\^\\x21-\\x7e\]/\.test\(key\)\) throw .*\{status: 401\}")

    def test_no_handler_or_style_in_attributes(self):
        for tag, attributes in self.parsed.elements:
            self.assertEqual([name for name in attributes if name.startswith("on") or name == "style"],
                             [], tag)

    def test_every_id_is_one_and_every_name_leads_to_it(self):
        ids = [attributes["id"] for _, attributes in self.parsed.elements if "id" in attributes]
        self.assertEqual(len(ids), len(set(ids)))
        wanted = set(re.findall(r'\$\("([a-z-]+)"\)', gw.DASHBOARD))
        for _, attributes in self.parsed.elements:
            for name in ("for", "aria-labelledby", "aria-describedby"):
                wanted.update((attributes.get(name) or "").split())
        self.assertEqual(wanted - set(ids), set())

    def test_landmarks_headings_captions_language(self):
        tags = [tag for tag, _ in self.parsed.elements]
        for tag in ("header", "main", "footer", "h1", "noscript"):
            self.assertEqual(tags.count(tag), 1, tag)
        self.assertEqual(tags.count("caption"), tags.count("table"))
        self.assertEqual(dict(self.parsed.elements)["html"]["lang"], "en")

    def test_light_dark_narrow_and_still(self):
        for query in ("prefers-color-scheme: dark", "prefers-reduced-motion", "max-width", "focus-visible"):
            with self.subTest(query):
                self.assertIn(query, gw.DASHBOARD)

    def test_knows_every_outcome_and_every_edit(self):
        for case in (*gw.CASES, gw.ANSWERED):
            with self.subTest(case.name):
                self.assertRegex(gw.DASHBOARD, r"\b%s: \"" % case.name)
        rules = {"thinking_suffix", "model", "collect", "background_model", "thinking_signature",
                 "cache_control", "merge_roles", "empty_text", "tool_pairs", "system_messages",
                 "thinking", "unknown_fields"}
        for edit in rules:
            with self.subTest(edit):
                self.assertRegex(gw.DASHBOARD, r"\b%s: \"" % edit)

    def test_small(self):
        self.assertLess(len(self.page.body), 48 * 1024)
        self.assertLess(gw.DASHBOARD.count("\n"), 600)


if __name__ == "__main__":
    unittest.main()
