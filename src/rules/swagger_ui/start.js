// Shows the API description of the Weir instance that serves this page. The page sends nothing to an external validator,
// and does not store a key that was typed in.
window.ui = SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#api",
  validatorUrl: null,
  deepLinking: true,
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
  tryItOutEnabled: true,
  displayRequestDuration: true,
  persistAuthorization: false,
});
