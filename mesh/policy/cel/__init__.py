"""The CEL subset of conditions: `parse`, `check`, then `evaluate` (exact) or `generate` (fast, exact behind it).

What is in, with CEL's meaning and no other:

    literals    int, uint (`1u`), double, string (all quotes, raw, escapes), bool, null, list, map (keys: strings)
    operators   == != < <= > >= in && || ! ?: + - * / % unary -   (&& and || absorb errors from either side)
    access      a.b, a.`b-c`, a['b'], a[0], has(a.b)
    strings     size, startsWith, endsWith, contains
    macros      all, exists, exists_one, map, filter; none inside another's body
    conversions int, uint, double, string, bool, dyn, timestamp, duration; the last two compare, add and subtract

What is out: `matches` (a regular expression costs what the event makes it cost), bytes, types as values, messages,
timestamp getters, optional values, extensions, any clock. The event's own time is `timestamp(event.time)`.

JSON numbers are what the parser made of them: `1` is an int, `1.0` a double, from 2^63 a uint. Beyond 64 bits an
integer still compares, by its mathematical value, and any other use of it is an error.

Source: CEL language definition (cel-spec v0.25); where it leaves room, what cel-cpp 0.x does (the tests compare both).
"""
