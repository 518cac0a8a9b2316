/* The module `mesh.native._compiled`: the hot loops of the mesh, each the twin of a Python function of the same name. */

#include "common.h"

static int
module_exec(PyObject *module)
{
    static int begun;
    if (begun++) { /* types and names are kept for the process, not for an interpreter of it */
        PyErr_SetString(PyExc_ImportError, "mesh.native._compiled is loaded once in a process: set MESH_NATIVE=off here");
        return -1;
    }
    static int (*const parts[])(PyObject *) = {
        accepting_add, acked_add,      acks_add,    arrays_add,   boarding_add, bytes_add,
        cutting_add,   deliveries_add, frames_add,  glimpse_add,  keyed_add,    maskers_add,
        masking_add,   nodes_add,      objects_add, outgoing_add, pieces_add,   reading_add,
        roots_add,     sealing_add,    sending_add, splicing_add, verbatim_add, verifying_add,
        walkers_add,
    };
    for (size_t i = 0; i < sizeof(parts) / sizeof(*parts); i++) {
        if (parts[i](module) < 0) {
            return -1;
        }
    }
    return 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, (void *)module_exec},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "mesh.native._compiled",
    .m_doc = "The hot loops of the mesh, compiled. See mesh/native/README.md.",
    .m_size = 0,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__compiled(void)
{
    return PyModuleDef_Init(&definition);
}
