/* A Triton backend: answers INPUT0 with copies of it as OUTPUT0, one response each, at once.
 *
 * A model in Python sends some 7,000 responses a second, fewer than a client reads, so that nothing
 * would be learned about the client. The few declarations are those of Triton's backend API
 * (triton/core/tritonbackend.h, which its wheels do not bring along); it keeps them as they are.
 */

#include <stdint.h>
#include <string.h>

typedef struct TRITONSERVER_Error TRITONSERVER_Error;
typedef void Handle;

enum { TYPE_FP32 = 11, CODE_INTERNAL = 1, MEMORY_CPU = 0, RELEASE_ALL = 1, FINAL = 1 };
enum { RESPONSES = 64 };

extern TRITONSERVER_Error* TRITONBACKEND_RequestInputByIndex(Handle*, uint32_t, Handle**);
extern TRITONSERVER_Error* TRITONBACKEND_InputProperties(
    Handle*, const char**, int*, const int64_t**, uint32_t*, uint64_t*, uint32_t*);
extern TRITONSERVER_Error* TRITONBACKEND_InputBuffer(
    Handle*, uint32_t, const void**, uint64_t*, int*, int64_t*);
extern TRITONSERVER_Error* TRITONBACKEND_RequestRelease(Handle*, uint32_t);
extern TRITONSERVER_Error* TRITONBACKEND_ResponseFactoryNew(Handle**, Handle*);
extern TRITONSERVER_Error* TRITONBACKEND_ResponseFactoryDelete(Handle*);
extern TRITONSERVER_Error* TRITONBACKEND_ResponseNewFromFactory(Handle**, Handle*);
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

static TRITONSERVER_Error* send_copy(
    Handle* factory, const void* from, uint64_t nbytes, const int64_t* shape, uint32_t dims, int last)
{
  Handle *response, *output;
  void* to;
  int memory = MEMORY_CPU;
  int64_t device = 0;
  OR_RETURN(TRITONBACKEND_ResponseNewFromFactory(&response, factory));
  OR_RETURN(TRITONBACKEND_ResponseOutput(response, &output, "OUTPUT0", TYPE_FP32, shape, dims));
  OR_RETURN(TRITONBACKEND_OutputBuffer(output, &to, nbytes, &memory, &device));
  memcpy(to, from, nbytes);
  return TRITONBACKEND_ResponseSend(response, last ? FINAL : 0, 0);
}

static TRITONSERVER_Error* answer(Handle* request, Handle* factory)
{
  Handle* input;
  const char* name;
  const int64_t* shape;
  const void* from;
  uint64_t nbytes;
  uint32_t dims, buffers;
  int type, memory;
  int64_t device;
  OR_RETURN(TRITONBACKEND_RequestInputByIndex(request, 0, &input));
  OR_RETURN(TRITONBACKEND_InputProperties(input, &name, &type, &shape, &dims, &nbytes, &buffers));
  OR_RETURN(TRITONBACKEND_InputBuffer(input, 0, &from, &nbytes, &memory, &device));
  for (int left = RESPONSES; left > 0; left--)
    OR_RETURN(send_copy(factory, from, nbytes, shape, dims, left == 1));
  return 0;
}

TRITONSERVER_Error* TRITONBACKEND_ModelInstanceExecute(
    Handle* instance, Handle** requests, const uint32_t count)
{
  (void)instance;
  for (uint32_t i = 0; i < count; i++) {
    Handle* factory;
    OR_RETURN(TRITONBACKEND_ResponseFactoryNew(&factory, requests[i]));
    OR_RETURN(answer(requests[i], factory));
    OR_RETURN(TRITONBACKEND_ResponseFactoryDelete(factory));
    OR_RETURN(TRITONBACKEND_RequestRelease(requests[i], RELEASE_ALL));
  }
  return 0;
}
