// Shows the description of the Weir that this page came from. No validator of another host is asked, and a key that
// was typed in is forgotten with the page.
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
