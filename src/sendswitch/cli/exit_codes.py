"""Exit codes of sysexits.h, as Postfix's pipe(8) reads them."""

EX_UNAVAILABLE, EX_TEMPFAIL = 69, 75
