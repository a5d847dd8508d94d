/* The shop's arithmetic, in C: whole cents, rounded once at the end.
 *
 * It is here because most real services have a dependency like it: a module
 * that must be compiled before it runs, and needs no compiler afterwards. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

PyDoc_STRVAR(total_doc,
"total(prices, counts, tax_percent, /)\n--\n\n"
"Return what the items cost together, tax included, in cents.");

static PyObject *
total(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *prices, *counts;
    long long tax_percent, cents = 0;

    if (!PyArg_ParseTuple(args, "O!O!L:total", &PyList_Type, &prices,
                          &PyList_Type, &counts, &tax_percent))
        return NULL;
    if (PyList_GET_SIZE(prices) != PyList_GET_SIZE(counts)) {
        PyErr_SetString(PyExc_ValueError, "each price needs one count");
        return NULL;
    }
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(prices); i++) {
        long long price = PyLong_AsLongLong(PyList_GET_ITEM(prices, i));
        long long count = PyLong_AsLongLong(PyList_GET_ITEM(counts, i));
        if (PyErr_Occurred())
            return NULL;
        cents += price * count;
    }
    return PyLong_FromLongLong((cents * (100 + tax_percent) + 50) / 100);
}

static PyMethodDef methods[] = {
    {"total", total, METH_VARARGS, total_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "shop._prices",
    .m_doc = "The shop's arithmetic.",
    .m_size = 0,
    .m_methods = methods,
};

PyMODINIT_FUNC
PyInit__prices(void)
{
    return PyModuleDef_Init(&module);
}
