#include "engine.h"

#include <stdarg.h>
#include <stdio.h>

void iso_engine_fault(struct iso_engine *engine, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(engine->fault_text, sizeof(engine->fault_text), format, arguments);
    va_end(arguments);
    engine->faults++;
}
