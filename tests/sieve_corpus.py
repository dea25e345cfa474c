"""Scripts, and what each wants done with one message: asked of ours and of Dovecot's Pigeonhole.

What is wanted is words: `keep` (the mail reaches the inbox), `file FOLDER`, `redirect ADDRESS`, `reject`, `vacation`.
"""

from __future__ import annotations

SENDER, RECIPIENT = "sender@Example.ORG", "joe+lists@example.com"

MAIL = """\
Received: from client.example.org by mx.example.com; Sat, 21 Nov 2026 10:00:00 +0000
From: "Ann \\"the boss\\" Example" <Ann.Example@Sub.Example.org>
To: Joe <joe@example.com>, "List, the" <users+dev@lists.example.net>
Cc: carol@example.com (comment z@z.example), "b c"@example.com
Sender: "boss@corp.example" <attacker@evil.example>
Resent-To: Friends: fred@example.com, <@relay.example:gina@example.com>;
X-Big: 18446744073709551617
Subject: =?utf-8?Q?Re:_[ACME-Users]_Gr=C3=BC=C3=9Fe_an_alle?=
X-Priority: 3
X-Spam-Score:  12.5
X-Empty:
List-Id: The users <acme-users.lists.example.net>
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary="b1"

preamble
--b1
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: base64

SGVsbG8gd29ybGQsIGhlcmUgaXMgdGhlIHNlY3JldCB3b3JkLgo=
--b1
Content-Type: text/html

<p>Click <b>here</b></p>
--b1
Content-Type: application/pdf; name="invoice.pdf"

%PDF-1.4
--b1--
""".replace("\n", "\r\n").encode()

# (what it shows, the script, what is wanted)
CORPUS: list[tuple[str, str, str]] = [
    ("nothing", "", "keep"),
    ("only comments", "# a comment\n/* and\n * another */\n", "keep"),
    ("keep", "keep;", "keep"),
    ("discard", "discard;", ""),
    ("keep beats discard", "discard; keep;", "keep"),
    ("stop", "stop; discard;", "keep"),
    ("fileinto", 'require "fileinto"; fileinto "Lists";', "file Lists"),
    ("fileinto twice the same", 'require "fileinto"; fileinto "Lists"; fileinto "Lists";', "file Lists"),
    ("fileinto two", 'require "fileinto"; fileinto "A"; fileinto "B";', "file A, file B"),
    ("fileinto and keep", 'require "fileinto"; fileinto "A"; keep;', "file A, keep"),
    ("fileinto copy", 'require ["fileinto", "copy"]; fileinto :copy "A";', "file A, keep"),
    ("fileinto discard", 'require "fileinto"; fileinto "A"; discard;', "file A"),
    ("redirect", 'redirect "x@example.net";', "redirect x@example.net"),
    ("redirect copy", 'require "copy"; redirect :copy "x@example.net";', "keep, redirect x@example.net"),
    ("redirect twice the same", 'redirect "x@example.net"; redirect "x@example.net";', "redirect x@example.net"),
    ("reject", 'require "reject"; reject "No, thanks.";', "reject"),
    ("ereject", 'require "ereject"; ereject text:\nNot\n..here\n.\n;', "reject"),
    ("vacation", 'require "vacation"; vacation :days 3 :subject "Away" "I am away.";', "keep, vacation"),
    ("if", "if true { discard; }", ""),
    ("else", "if false { keep; } else { discard; }", ""),
    ("elsif", "if false { keep; } elsif true { discard; } else { keep; }", ""),
    ("only the first that holds", "if true { } elsif true { discard; }", "keep"),
    ("stop in a block", 'require "fileinto"; if true { fileinto "A"; stop; } fileinto "B";', "file A"),
    ("allof", "if allof (true, true) { discard; }", ""),
    ("allof not", "if allof (true, false) { discard; }", "keep"),
    ("anyof", "if anyof (false, true) { discard; }", ""),
    ("anyof not", "if anyof (false, false) { discard; }", "keep"),
    ("not", "if not false { discard; }", ""),
    ("deep", "if not not not allof (anyof (false), not false) { discard; }", ""),
    ("names have no case", "IF Not FALSE { DisCard; }", ""),
    ("size over", "if size :over 500 { discard; }", ""),
    ("size under", "if size :under 1M { discard; }", ""),
    ("size over not", "if size :over 100M { discard; }", "keep"),
    ("exists", 'if exists "x-priority" { discard; }', ""),
    ("exists all", 'if exists ["X-Priority", "X-Nothing"] { discard; }', "keep"),
    ("header is", 'if header "X-PRIORITY" "3" { discard; }', ""),
    ("header is all of it", 'if header :is "subject" "Grüße" { discard; }', "keep"),
    ("header decoded", 'if header :contains "subject" "Grüße AN" { discard; }', ""),
    ("header without spaces around", 'if header :is "x-spam-score" "12.5" { discard; }', ""),
    ("an empty header", 'if header :is "x-empty" "" { discard; }', ""),
    ("a missing header", 'if header :is "x-nothing" "" { discard; }', "keep"),
    ("contains nothing", 'if header :contains "x-priority" "" { discard; }', ""),
    ("any of the keys", 'if header :is ["x-nothing", "x-priority"] ["9", "3"] { discard; }', ""),
    ("octets", 'if header :comparator "i;octet" :contains "subject" "GRÜSSE" { discard; }', "keep"),
    ("case of ASCII only", 'if header :contains "subject" "GRÜßE" { discard; }', "keep"),
    ("matches", 'if header :matches "subject" "re: [*] *" { discard; }', ""),
    ("matches all of it", 'if header :matches "subject" "[*]" { discard; }', "keep"),
    ("matches one", 'if header :matches "x-priority" "?" { discard; }', ""),
    ("matches one, not two", 'if header :matches "x-priority" "??" { discard; }', "keep"),
    ("matches what is quoted", r'if header :matches "x-priority" "\\*" { discard; }', "keep"),
    ("address", 'if address "from" "ann.example@sub.example.org" { discard; }', ""),
    ("address domain", 'if address :domain "from" "sub.example.org" { discard; }', ""),
    ("address localpart", 'if address :localpart :is "from" "ANN.EXAMPLE" { discard; }', ""),
    ("address of several", 'if address :all ["to", "cc"] "carol@example.com" { discard; }', ""),
    ("address, not its name", 'if address :is "sender" "boss@corp.example" { discard; }', "keep"),
    ("address behind a name", 'if address :is "sender" "attacker@evil.example" { discard; }', ""),
    ("address, not a comment", 'if address "cc" "z@z.example" { discard; }', "keep"),
    ("address in quotes", 'if address :localpart "cc" "b c" { discard; }', ""),
    ("addresses in a group", 'if address "resent-to" "fred@example.com" { discard; }', ""),
    ("address behind a route", 'if address "resent-to" "gina@example.com" { discard; }', ""),
    ("address, no part of its name", 'if address :contains "from" "boss" { discard; }', "keep"),
    ("address octets", 'if address :comparator "i;octet" "from" "Ann.Example@Sub.Example.org" { discard; }', ""),
    ("user", 'require "subaddress"; if address :user "to" "users" { discard; }', ""),
    ("detail", 'require "subaddress"; if address :detail "to" "dev" { discard; }', ""),
    ("no detail", 'require "subaddress"; if address :detail "cc" "" { discard; }', "keep"),
    ("user without detail", 'require "subaddress"; if address :user "cc" "carol" { discard; }', ""),
    ("envelope from", 'require "envelope"; if envelope "from" "sender@example.org" { discard; }', ""),
    ("envelope domain", 'require "envelope"; if envelope :domain "FROM" "example.org" { discard; }', ""),
    (
        "no detail in the envelope",
        'require ["envelope", "subaddress"]; if envelope :detail "from" "" { discard; }',
        "keep",
    ),
    (
        "envelope to",
        'require ["envelope", "subaddress"]; if envelope :detail "to" "lists" { discard; }',
        "",
    ),
    (
        "variables",
        'require ["variables", "fileinto"]; set "name" "Value"; fileinto "${name}-${NAME}-${other}";',
        "file Value-Value-",
    ),
    (
        "what matched",
        'require ["variables", "fileinto"]; if header :matches "subject" "*[*-*]*" { fileinto "${2}.${3}"; }',
        "file ACME.Users",
    ),
    (
        "all that matched",
        'require ["variables", "fileinto"]; if header :matches "x-priority" "?" { fileinto "P${0}${1}${2}"; }',
        "file P33",
    ),
    (
        "a match that fails leaves the last one",
        'require ["variables", "fileinto"]; if header :matches "x-priority" "?" {}'
        ' if header :matches "x-priority" "?x" {} fileinto "P${1}";',
        "file P3",
    ),
    (
        "is leaves the last match",
        'require ["variables", "fileinto"]; if header :matches "x-priority" "?" {}'
        ' if header :is "x-priority" "3" {} fileinto "P${1}";',
        "file P3",
    ),
    (
        "as little as it can",
        'require ["variables", "fileinto"]; set "a" "one-two-three";'
        ' if string :matches "${a}" "*-*" { fileinto "${1}|${2}"; }',
        "file one|two-three",
    ),
    (
        "modifiers",
        'require ["variables", "fileinto"]; set :upperfirst :lower "a" "jUHU"; set :length "b" "${a}";'
        ' fileinto "${a}${b}";',
        "file Juhu4",
    ),
    (
        "quotewildcard",
        'require ["variables", "fileinto"]; set :quotewildcard "a" "R*?"; if string :matches "R*?" "${a}"'
        ' { fileinto "same"; }',
        "file same",
    ),
    (
        "without require it is text",
        'require "fileinto"; fileinto "a${b}";',
        "file a${b}",
    ),
    (
        "no reference",
        'require ["variables", "fileinto"]; set "a" "x"; fileinto "$a ${a ${a}} ${-}";',
        "file $a ${a x} ${-}",
    ),
    (
        "strings counted",
        'require ["variables", "relational", "comparator-i;ascii-numeric"];'
        ' if string :count "eq" :comparator "i;ascii-numeric" ["a", "", "${none}"] "1" { discard; }',
        "",
    ),
    (
        "regex",
        'require ["regex", "variables", "fileinto"]; if header :regex "list-id" "<([a-z]+)-([a-z]+)[.]"'
        ' { fileinto "${2}.${1}"; }',
        "file users.acme",
    ),
    ("regex not", 'require "regex"; if header :regex "x-priority" "^[45]$" { discard; }', "keep"),
    (
        "as a number",
        'require ["relational", "comparator-i;ascii-numeric"];'
        ' if header :value "ge" :comparator "i;ascii-numeric" "x-spam-score" "9" { discard; }',
        "",
    ),
    (
        "as text",
        'require "relational"; if header :value "lt" "x-spam-score" "9" { discard; }',
        "",
    ),
    (
        "no number is more than any",
        'require ["relational", "comparator-i;ascii-numeric"];'
        ' if header :value "gt" :comparator "i;ascii-numeric" "subject" "999999" { discard; }',
        "",
    ),
    (
        "counted",
        'require ["relational", "comparator-i;ascii-numeric"];'
        ' if address :count "eq" :comparator "i;ascii-numeric" ["to", "cc"] "4" { discard; }',
        "",
    ),
    (
        "numbers of any size",
        'require ["relational", "comparator-i;ascii-numeric"];'
        ' if header :value "eq" :comparator "i;ascii-numeric" "x-big" "18446744073709551616" { discard; }',
        "keep",
    ),
    ("body decoded", 'require "body"; if body :contains "secret word" { discard; }', ""),
    ("body not raw", 'require "body"; if body :raw :contains "secret word" { discard; }', "keep"),
    ("body raw", 'require "body"; if body :raw :contains "SGVsbG8gd29ybGQs" { discard; }', ""),
    ("body of a kind", 'require "body"; if body :content "application/pdf" :contains "%PDF" { discard; }', ""),
    ("body of another kind", 'require "body"; if body :content "text/plain" :contains "%PDF" { discard; }', "keep"),
    ("body of a main kind", 'require "body"; if body :content "text" :contains "click" { discard; }', ""),
    ("body of all kinds", 'require "body"; if body :content "" :contains "%pdf" { discard; }', ""),
    (
        "body remembers nothing",
        'require ["body", "variables", "fileinto"]; if header :matches "x-priority" "?" {}'
        ' if body :matches "*secret*" {} fileinto "P${1}";',
        "file P3",
    ),
    ("characters", 'require ["encoded-character", "fileinto"]; fileinto "${unicode:47 FC}${hex: 72}";', "file Gür"),
    (
        "characters with zeros before",
        'require ["encoded-character", "fileinto"]; fileinto "${UnICoDE:0000040}";',
        "file @",
    ),
    ("characters in pieces", 'require ["encoded-character", "fileinto"]; fileinto "x${hex:c3}${hex:a4}";', "file xä"),
    (
        "characters once",
        'require ["encoded-character", "fileinto"]; fileinto "x${hex:24}{unicode:41}";',
        "file x${unicode:41}",
    ),
    (
        "no characters",
        'require ["encoded-character", "fileinto"]; fileinto "${hex:4x}${unicode:}";',
        "file ${hex:4x}${unicode:}",
    ),
    ("strings over lines", 'require "fileinto"; fileinto "a\\"b\\\\c";', 'file a"b\\c'),
    ("numbers", "if allof (size :over 1, size :under 1g) { discard; }", ""),
    ("a list of one", 'if header :is ["x-priority"] ["3"] { discard; }', ""),
    (
        "both in one require",
        'require ["fileinto", "envelope"]; if envelope :matches :localpart "from" "s?nd*" { fileinto "x"; }',
        "file x",
    ),
]

# (the script, what is said about it)
WRONG: list[tuple[str, str]] = [
    ('fileinto "x";', 'line 1: fileinto needs require "fileinto"'),
    ('require "fileinto";\n\nfileinto :copy "x";', 'line 3: :copy needs require "copy"'),
    ('if envelope "from" "x" {}', 'envelope needs require "envelope"'),
    ('require "nonsense";', "'nonsense' is not supported; what is: body, "),
    ('keep; require "fileinto";', "require stands before all other commands"),
    ("explode;", "there is no command explode"),
    ("if explode {}", "there is no test explode"),
    ('if anyof (header "a" "b" true) {}', "header has no tests of its own; is a comma missing?"),
    ('require "vacation"; vacation :seconds 7 "x";', "vacation does not know :seconds"),
    ("keep", "line 1: ';' is missing at the end"),
    ("if true { keep;", "'}' is missing at the end"),
    ("if true keep;", "the block of if is missing"),
    ("if true keep {}", "true has no tests of its own"),
    ("if true;", "the block of if is missing"),
    ("if {}", "if and elsif have one test"),
    ("else { keep; }", "else without if"),
    ("elsif true { keep; }", "elsif without if"),
    ("if true {} else {} elsif true {}", "stands behind an else"),
    ("if true {} else true {}", "else has none"),
    ('if header "subject" :contains "x" {}', ":contains stands before all that has no colon"),
    ('require "relational"; if header :value ["gt", "lt"] "a" "1" {}', "behind :value stands one string"),
    ("keep 5;", "keep has 1 arguments, not 0"),
    ("keep {}", "keep has no block"),
    ("keep true;", "keep has no block and no tests; is a ; missing behind it?"),
    (
        'require "reject"\nif true { reject "x"; }',
        "line 1: require has no block and no tests; is a ; missing behind it?",
    ),
    ('require "fileinto"\nfileinto "A";', "line 1: require has no block and no tests"),
    ("discard :now;", "discard does not know :now"),
    ("discard :copy;", ':copy needs require "copy"'),
    ("discard :over;", "discard does not know :over; it knows no tags"),
    ('redirect "nobody";', "'nobody' is no mail address"),
    ('redirect ["a@b", "c@d"];', "redirect has one string there, not a list"),
    ("redirect 5;", "redirect misses a string"),
    ('if header "subject" {}', "header misses a string"),
    ('if header :is :contains "a" "b" {}', ":is and :contains exclude each other"),
    ('if header :is :is "a" "b" {}', ":is stands there twice"),
    ('if header :comparator "i;klingon" "a" "b" {}', "there is no comparator 'i;klingon'"),
    ('if header :comparator "i;ascii-numeric" "a" "b" {}', 'needs require "comparator-i;ascii-numeric"'),
    (
        'require "comparator-i;ascii-numeric"; if header :contains :comparator "i;ascii-numeric" "a" "1" {}',
        ":contains cannot compare numbers",
    ),
    ('if header :regex "a" "b" {}', ':regex needs require "regex"'),
    ('require "regex"; if header :regex "a" "(" {}', "is no pattern that RE2 takes"),
    ('require "relational"; if header :value "about" "a" "1" {}', "'about' is none of gt, ge"),
    ('require "relational"; if header :value :is "a" "1" {}', "the value of :value is missing"),
    ('require "relational"; if header :value 5 "a" "1" {}', "behind :value stands a string"),
    ('if address "subject" "x" {}', "'subject' is no field with addresses"),
    ("if size 5 {}", "size is written like size :over 100K"),
    ('if size :over "5" {}', "size is written like"),
    ("if allof {}", "allof has tests in parentheses"),
    ("if not {}", "not has one test"),
    ("if not (true, false) {}", "not has one test"),
    ('require "variables"; set "1x" "y";', "'1x' is no name of a variable"),
    ('require "variables"; set :lower :upper "x" "y";', "these modifiers exclude each other"),
    ('require "variables"; set "${x}" "y";', "cannot have variables"),
    ('set "x" "y";', 'set needs require "variables"'),
    ('if string "x" "y" {}', 'string needs require "variables"'),
    ('require ["encoded-character", "fileinto"]; fileinto "${unicode:d800}";', "there is no character d800"),
    ('require "vacation"; vacation :days "x" "y";', "behind :days stands a number"),
    ('require "body"; if body :raw :text "x" {}', ":raw, :content and :text exclude each other"),
    ('keep; "never ends', "this string has no end"),
    ("keep; text: never\nends", "is nothing that Sieve knows"),
    ("@", "'@' is nothing that Sieve knows"),
    ('if header ["a", 5] "b" {}', "a string is missing before '5'"),
    ("5;", "the name of a command is missing before '5'"),
    ("if allof (true,) {}", "the name of a test is missing"),
    ("if " + "not " * 40 + "true {}", "more than 32 blocks and tests in each other"),
    ("if true {" * 40 + "}" * 40, "more than 32 blocks"),
]

# Where Pigeonhole warns, finds it later, or can do more.
STRICTER: list[tuple[str, str]] = [
    ('if header :matches "a" "' + "x" * 2001 + '" {}', "at most 2000 characters"),
    ('require "regex"; if header :regex "a" "' + "x{999}" * 6 + '" {}', "more of a pattern than any mail"),
    ('if header "a b" "c" {}', "'a b' is no name of a header field"),
    ('require "envelope"; if envelope "auth" "x" {}', "the envelope has from and to, not 'auth'"),
    ('require ["variables", "fileinto"]; fileinto "${env.x}";', "a variable of an extension that is not supported"),
    ('require "vacation"; vacation :addresses "nobody" "y";', "'nobody' is no mail address"),
    ('require "vacation"; vacation :mime "y";', "vacation does not know :mime"),
    ("#" * 70_000, "a script has at most 65536 characters"),
    (
        'require "regex"; if header :regex "a" ["' + '","'.join(f"x{{900}}{n}" for n in range(50)) + '"] {}',
        "more patterns than a script may have",
    ),
]
