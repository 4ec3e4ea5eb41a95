/* The only sink of HTML: htmx's policy lets markup through and refuses every script. Part of the htmx bundle. */
(() => {
  const refuse = () => { throw new TypeError("scripts in pages are switched off"); };
  const rules = { createHTML: (text) => text, createScript: refuse };
  const policy = window.trustedTypes ? trustedTypes.createPolicy("htmx", rules) : rules;
  htmx.registerExtension("tt", { init: (api) => api.initSecurity(policy, refuse, refuse) });
})();
