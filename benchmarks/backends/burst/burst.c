/* A Triton backend: answers INPUT0 with copies of it as OUTPUT0, one response each, at once.
 *
 * A model in Python sends some 7,000 responses a second, fewer than a client reads, so that nothing
 * would be learned about the client.
 */

#include "../model.h"

enum { RESPONSES = 64 };

static TRITONSERVER_Error* answer(Handle* request, Handle* factory)
{
  Values values;
  OR_RETURN(read_values(request, &values));
  for (int left = RESPONSES; left > 0; left--) {
    Handle* response;
    OR_RETURN(TRITONBACKEND_ResponseNewFromFactory(&response, factory));
    OR_RETURN(send_copy(response, &values, left == 1));
  }
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
