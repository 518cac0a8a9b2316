/* An event's text, and what is written of it piece by piece: what pieces.c and splicing.c share. */

#ifndef MESH_NATIVE_SPLICING_H
#define MESH_NATIVE_SPLICING_H

#include "nodes.h"
#include "written.h"

/* The answer so far. What stands in the text from *from* up to where the walk is shows as it is and is not written yet;
 * so an answer is taken back by going back to what *out.size* and *from* were. */
typedef struct {
    Out out;
    const char *from, *end;
    int depth;
} Splice;

/* What became of a value. FAILED with no exception: the text is none that `verbatim` gave, or today's way has to tell. */
typedef enum { FAILED = -1, SHOWN, GONE, NOT_MET } Fate;

extern PyObject *no_path;           /* the walker that finds nothing */
extern PyObject *redacts, *drops;   /* masks that need not be asked */

/* Write what waits, up to *until*: 0, or -1 with an exception. */
static inline int
show_until(Splice *splice, const char *until)
{
    if (until > splice->from) {
        if (out_put(&splice->out, splice->from, until - splice->from) < 0) {
            return -1;
        }
        splice->from = until;
    }
    return 0;
}

/* Before a member or an item that begins at *lead*, its comma or bracket: nothing that shows goes before it. */
static inline void
lead_in(Splice *splice, const char *lead)
{
    if (*lead == ',') {
        splice->from = lead + 1; /* all from the bracket on was left out, so nothing waits to be written */
    }
}

static inline int
leave_out(Splice *splice, const char *lead, const char *behind)
{
    if (show_until(splice, lead + (*lead != ',')) < 0) {
        return -1;
    }
    splice->from = behind;
    return 0;
}

/* Write *value*, which a mask made, in the place of what stands from *at* to *behind*: SHOWN or FAILED. */
Fate put_instead(Splice *splice, PyObject *value, const char *at, const char *behind);

/* The scalar at *at*, which is then behind it, as *act* has it. What becomes of an *attribute* may be that it is GONE. */
Fate act_on_scalar(Splice *splice, PyObject *act, const char **at, int attribute);

/* What `masked` takes besides the text. */
typedef struct {
    PyObject *instead; /* a dict, or NULL: none */
    PyObject *top;     /* a dict */
    Node *elsewhere;
    PyObject *otherwise;
} Look;

/* `masked` of *text*, which is bytes, with *behind* and then *marks* as what goes behind all. All of *look* is held by
 * the caller. */
PyObject *masked_text(PyObject *text, const Look *look, Text behind, Text marks);

/* The container from *at* to *behind* as *act*, a walker or a mask, has it. */
Fate act_on_container(Splice *splice, PyObject *act, const char *at, const char *behind, int attribute);

#endif
