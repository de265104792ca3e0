/* A Triton backend: answers INPUT0 with a copy of it as OUTPUT0.
 *
 * A model in Python takes longer than small messages do on their way, however they go.
 */

#include "../model.h"

static TRITONSERVER_Error* answer(Handle* request)
{
  Handle* response;
  Values values;
  OR_RETURN(read_values(request, &values));
  OR_RETURN(TRITONBACKEND_ResponseNew(&response, request));
  return send_copy(response, &values, 1);
}

TRITONSERVER_Error* TRITONBACKEND_ModelInstanceExecute(
    Handle* instance, Handle** requests, const uint32_t count)
{
  (void)instance;
  for (uint32_t i = 0; i < count; i++) {
    OR_RETURN(answer(requests[i]));
    OR_RETURN(TRITONBACKEND_RequestRelease(requests[i], RELEASE_ALL));
  }
  return 0;
}
