/* What the models in C share: the declarations that they use, and a response with one copy.
 *
 * The few declarations are those of Triton's backend API (triton/core/tritonbackend.h, which its
 * wheels do not bring along); it keeps them as they are.
 */

#include <stdint.h>
#include <string.h>

typedef struct TRITONSERVER_Error TRITONSERVER_Error;
typedef void Handle;

enum { TYPE_FP32 = 11, CODE_INTERNAL = 1, MEMORY_CPU = 0, RELEASE_ALL = 1, FINAL = 1 };

extern TRITONSERVER_Error* TRITONBACKEND_RequestInputByIndex(Handle*, uint32_t, Handle**);
extern TRITONSERVER_Error* TRITONBACKEND_InputProperties(
    Handle*, const char**, int*, const int64_t**, uint32_t*, uint64_t*, uint32_t*);
extern TRITONSERVER_Error* TRITONBACKEND_InputBuffer(
    Handle*, uint32_t, const void**, uint64_t*, int*, int64_t*);
extern TRITONSERVER_Error* TRITONBACKEND_RequestRelease(Handle*, uint32_t);
extern TRITONSERVER_Error* TRITONBACKEND_ResponseFactoryNew(Handle**, Handle*);
extern TRITONSERVER_Error* TRITONBACKEND_ResponseFactoryDelete(Handle*);
extern TRITONSERVER_Error* TRITONBACKEND_ResponseNewFromFactory(Handle**, Handle*);
extern TRITONSERVER_Error* TRITONBACKEND_ResponseNew(Handle**, Handle*);
extern TRITONSERVER_Error* TRITONBACKEND_ResponseOutput(
    Handle*, Handle**, const char*, int, const int64_t*, uint32_t);
extern TRITONSERVER_Error* TRITONBACKEND_OutputBuffer(
    Handle*, void**, uint64_t, int*, int64_t*);
extern TRITONSERVER_Error* TRITONBACKEND_ResponseSend(Handle*, uint32_t, TRITONSERVER_Error*);

#define OR_RETURN(call)                      \
  do {                                       \
    TRITONSERVER_Error* error = (call);      \
    if (error) return error;                 \
  } while (0)

/* The first input of a request. */
typedef struct {
  const void* from;
  uint64_t nbytes;
  const int64_t* shape;
  uint32_t dims;
} Values;

static TRITONSERVER_Error* read_values(Handle* request, Values* values)
{
  Handle* input;
  const char* name;
  uint32_t buffers;
  int type, memory;
  int64_t device;
  OR_RETURN(TRITONBACKEND_RequestInputByIndex(request, 0, &input));
  OR_RETURN(TRITONBACKEND_InputProperties(
      input, &name, &type, &values->shape, &values->dims, &values->nbytes, &buffers));
  return TRITONBACKEND_InputBuffer(input, 0, &values->from, &values->nbytes, &memory, &device);
}

static TRITONSERVER_Error* send_copy(Handle* response, const Values* values, int last)
{
  Handle* output;
  void* to;
  int memory = MEMORY_CPU;
  int64_t device = 0;
  OR_RETURN(TRITONBACKEND_ResponseOutput(
      response, &output, "OUTPUT0", TYPE_FP32, values->shape, values->dims));
  OR_RETURN(TRITONBACKEND_OutputBuffer(output, &to, values->nbytes, &memory, &device));
  memcpy(to, values->from, values->nbytes);
  return TRITONBACKEND_ResponseSend(response, last ? FINAL : 0, 0);
}
